/**
 * Weights as torch.save writes them: a zip whose `data.pkl` describes tensors and whose `data/*` are their storages, stored
 * without compression. Nothing is read but the directory and the description; tensors are mapped where they lie.
 */
import { open } from 'node:fs/promises'
import { causedBy, DeemError } from '../errors.js'
import type { DType } from '../native.js'
import { PickledTensor, unpickle } from './pickle.js'

/** The description of 14 GB of weights is below a megabyte. */
const maxPickle = 256 << 20
const maxEntries = 1_000_000

/** A tensor of the file: `start` in bytes, strides in elements. The dtype may be one that no tensor here can have. */
export interface StoredTensor {
  name: string
  dtype: DType | 'f64' | 'i16' | 'i8'
  shape: readonly number[]
  strides: readonly number[]
  start: number
}

export function isTorchFile(path: string): boolean {
  return /\.(?:bin|pth?|ckpt)$/i.test(path)
}

interface Entry {
  start: number
  size: number
}

const storageTypes: Record<string, [StoredTensor['dtype'], size: number]> = {
  FloatStorage: ['f32', 4],
  HalfStorage: ['f16', 2],
  BFloat16Storage: ['bf16', 2],
  DoubleStorage: ['f64', 8],
  LongStorage: ['i64', 8],
  IntStorage: ['i32', 4],
  ShortStorage: ['i16', 2],
  CharStorage: ['i8', 1],
  ByteStorage: ['u8', 1],
  BoolStorage: ['u8', 1],
}

/** Reads the directory of a torch file. Throws ERR_IO or ERR_FORMAT naming the file and what is wrong in it. */
export async function readTorchLayout(path: string): Promise<StoredTensor[]> {
  try {
    const { entries, read } = await directory(path)
    const pickles = [...entries.keys()].filter((name) => /^(?:[^/]+\/)?data\.pkl$/.test(name))
    if (pickles.length !== 1)
      throw new DeemError('ERR_FORMAT', `${pickles.length} entries are called data.pkl, not one`)
    const root = (pickles[0] as string).slice(0, -'data.pkl'.length)
    const order = entries.get(`${root}byteorder`)
    if (order && (await read(order, 16)).toString('latin1') !== 'little')
      throw new DeemError('ERR_FORMAT', 'its numbers are not little endian')
    const tensors = namedTensors(unpickle(await read(entries.get(pickles[0] as string) as Entry, maxPickle)))
    return tensors.map(([name, t]) => {
      const { key, type, elements } = t.storage
      const [dtype, size] = storageTypes[type] ?? fail(`'${name}' lies in a ${type}, which is not supported`)
      const entry = entries.get(`${root}data/${key}`) ?? fail(`the storage '${key}' of '${name}' is missing`)
      if (elements * size !== entry.size)
        fail(`the storage '${key}' should hold ${elements * size} bytes but holds ${entry.size}`)
      return { name, dtype, shape: t.shape, strides: t.strides, start: entry.start + t.offset * size }
    })
  } catch (cause) {
    const system = /^E[A-Z]+$/.test(String((cause as NodeJS.ErrnoException).code))
    throw causedBy(cause, system ? 'ERR_IO' : 'ERR_FORMAT', `'${path}'`)
  }
}

function fail(what: string): never {
  throw new DeemError('ERR_FORMAT', what)
}

async function directory(path: string) {
  const { default: yauzl } = await import('yauzl') // here: most programs read no such files
  const file = await yauzl.openPromise(path, { autoClose: false, lazyEntries: true })
  try {
    if (file.entryCount > maxEntries) fail(`its directory lists ${file.entryCount} entries, over ${maxEntries}`)
    const entries = new Map<string, Entry>()
    for await (const entry of file.eachEntry()) {
      const { fileName, compressionMethod, uncompressedSize: size } = entry
      if (entries.has(fileName)) fail(`two entries are called '${fileName}'`)
      if (compressionMethod !== 0 || entry.compressedSize !== size) fail(`'${fileName}' is compressed`)
      const { fileDataStart: start } = await file.readLocalFileHeaderPromise(entry, { minimal: true })
      if (start + size > file.fileSize) fail(`'${fileName}' reaches beyond the end of the file`)
      entries.set(fileName, { start, size })
    }
    return {
      entries,
      read: async ({ start, size }: Entry, most: number): Promise<Buffer> => {
        if (size > most) fail(`an entry of ${size} bytes is above the ${most} that are read`)
        const handle = await open(path)
        try {
          const { buffer, bytesRead } = await handle.read(Buffer.alloc(size), 0, size, start)
          if (bytesRead !== size) fail('it ended while it was read')
          return buffer
        } finally {
          await handle.close()
        }
      },
    }
  } finally {
    file.close()
  }
}

/** A state dict, alone or where trainers put it. */
function namedTensors(root: unknown): [string, PickledTensor][] {
  for (let at = root; at instanceof Map; ) {
    const tensors = [...at].filter((pair): pair is [string, PickledTensor] => pair[1] instanceof PickledTensor)
    if (tensors.length > 0) {
      for (const [name] of tensors) if (typeof name !== 'string') fail('a tensor whose name is no string')
      return tensors
    }
    at = ['state_dict', 'model', 'module']
      .map((key) => (at as Map<unknown, unknown>).get(key))
      .find((v) => v instanceof Map)
  }
  return fail('it holds no tensors by name')
}
