// Writes what torch.save writes, and what it never would: a zip of stored entries and a pickle, byte by byte.
import { writeFileSync } from 'node:fs'
import { crc32 } from 'node:zlib'

export interface ZipEntry {
  name: string
  data: Uint8Array
  /** What the headers claim in place of the truth. */
  claims?: { method?: number; size?: number; compressed?: number; offset?: number }
}

export function zip(entries: readonly ZipEntry[]): Buffer {
  const parts: Buffer[] = []
  const directory: Buffer[] = []
  let at = 0
  for (const { name, data, claims = {} } of entries) {
    const title = Buffer.from(name)
    const common = Buffer.alloc(26)
    common.writeUInt16LE(20, 0)
    common.writeUInt16LE(0x800, 2) // the name is UTF-8
    common.writeUInt16LE(claims.method ?? 0, 4)
    common.writeUInt32LE(crc32(data), 10)
    common.writeUInt32LE(claims.compressed ?? claims.size ?? data.length, 14)
    common.writeUInt32LE(claims.size ?? data.length, 18)
    common.writeUInt16LE(title.length, 22)
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, title, data])
    const rest = Buffer.alloc(14)
    rest.writeUInt32LE(claims.offset ?? at, 10)
    directory.push(Buffer.concat([Buffer.from('PK\x01\x02'), Buffer.from([20, 0]), common, rest, title]))
    parts.push(local)
    at += local.length
  }
  const central = Buffer.concat(directory)
  const end = Buffer.alloc(18)
  end.writeUInt16LE(entries.length, 4)
  end.writeUInt16LE(entries.length, 6)
  end.writeUInt32LE(central.length, 8)
  end.writeUInt32LE(at, 12)
  return Buffer.concat([...parts, central, Buffer.from('PK\x05\x06'), end])
}

export interface SavedTensor {
  /** torch's class, e.g. `FloatStorage`. */
  storage: string
  data: Uint8Array
  elements: number
  shape: number[]
  strides?: number[]
  offset?: number
  /** Shares the bytes of an earlier one. */
  key?: string
}

const text = (s: string) => {
  const bytes = Buffer.from(s)
  const size = Buffer.alloc(4)
  size.writeUInt32LE(bytes.length)
  return Buffer.concat([Buffer.from('X'), size, bytes])
}
const number = (n: number) => {
  const b = Buffer.alloc(5)
  b[0] = 0x4a
  b.writeInt32LE(n, 1)
  return b
}
const tuple = (...items: Buffer[]) => Buffer.concat([Buffer.from('('), ...items, Buffer.from('t')])
const called = (name: string, ...args: Buffer[]) =>
  Buffer.concat([Buffer.from(`c${name.replace(/\.([^.]+)$/, '\n$1')}\n`), tuple(...args), Buffer.from('R')])

/** Pieces of pickles for tests that build their own. */
export const pickle = {
  text,
  number,
  tuple,
  called,
  whole: (...body: Buffer[]) => Buffer.concat([Buffer.from([0x80, 2]), ...body, Buffer.from('.')]),
}

export function tensorPickle(t: SavedTensor, key: string): Buffer {
  const strides = t.strides ?? t.shape.map((_, i) => t.shape.slice(i + 1).reduce((a, n) => a * n, 1))
  const id = tuple(text('storage'), Buffer.from(`ctorch\n${t.storage}\n`), text(key), text('cpu'), number(t.elements))
  return called(
    'torch._utils._rebuild_tensor_v2',
    Buffer.concat([id, Buffer.from('Q')]),
    number(t.offset ?? 0),
    tuple(...t.shape.map(number)),
    tuple(...strides.map(number)),
    Buffer.from([0x89]),
    called('collections.OrderedDict'),
  )
}

export function torchEntries(tensors: Record<string, SavedTensor>, root = 'archive'): ZipEntry[] {
  const names = Object.keys(tensors)
  const items = names.flatMap((name, i) => [
    text(name),
    tensorPickle(tensors[name] as SavedTensor, keyOf(tensors, name, i)),
  ])
  const body = Buffer.concat([Buffer.from('}('), ...items, Buffer.from('u')])
  return [
    { name: `${root}/data.pkl`, data: pickle.whole(body) },
    { name: `${root}/byteorder`, data: Buffer.from('little') },
    ...names.flatMap((name, i) =>
      tensors[name]?.key === undefined
        ? [{ name: `${root}/data/${i}`, data: (tensors[name] as SavedTensor).data }]
        : [],
    ),
    { name: `${root}/version`, data: Buffer.from('3\n') },
  ]
}

const keyOf = (tensors: Record<string, SavedTensor>, name: string, i: number) => tensors[name]?.key ?? String(i)

export function writeTorchFile(path: string, tensors: Record<string, SavedTensor>): void {
  writeFileSync(path, zip(torchEntries(tensors)))
}
