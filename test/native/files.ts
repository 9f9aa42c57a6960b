// Safetensors files: what is written comes back, what is broken or hostile is an error with a code, and a write that fails
// leaves the old file alone.
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import {
  DeemError,
  type DType,
  type ErrorCode,
  Module,
  memory,
  ops,
  readTensors,
  setMemoryLimit,
  type Tensor,
  tensor,
  writeTensors,
} from 'deem'
import { generator } from '../_harness/op.js'

const folder = mkdtempSync(join(tmpdir(), 'deem-files-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))
let made = 0
const fresh = () => join(folder, `${made++}.safetensors`)
/** What writing leaves in a folder beside what was asked for. */
const leftovers = (dir = folder) => readdirSync(dir).filter((name) => name.endsWith('.tmp'))

async function codeOf(
  t: { is: (a: unknown, b: unknown, m?: string) => unknown },
  code: ErrorCode,
  what: string,
  run: Promise<unknown>,
) {
  const error = await run.then(
    () => null,
    (e: unknown) => e,
  )
  t.is(DeemError.isInstance(error) ? error.code : String(error), code, `${what}: ${String(error)}`)
  return String(error)
}

// ---- round trips ------------------------------------------------------------------------------------------------------

test('every dtype, scalars, empty tensors, views and odd names come back as they were', async (t) => {
  const tensors: Record<string, Tensor> = {}
  for (const dtype of ['f32', 'bf16', 'f16', 'i64', 'i32', 'u8'] as DType[]) {
    tensors[dtype] = ops.cast(
      tensor([
        [0, 1, 2],
        [3, 100, 255],
      ]),
      dtype,
    )
    tensors[`${dtype} scalar`] = ops.cast(tensor(7), dtype)
    tensors[`${dtype} empty`] = ops.cast(tensor(new Float32Array(0), [3, 0, 2]), dtype)
  }
  tensors['NaN, infinity, -0'] = tensor([Number.NaN, Number.POSITIVE_INFINITY, -0, 1e-45])
  tensors['transposed'] = ops.permute(tensors['f32'] as Tensor, [1, 0])
  tensors['slice'] = ops.slice(tensors['i64'] as Tensor, 1, 1, 3)
  tensors['eight axes'] = tensor(new Uint8Array(2), [1, 1, 1, 2, 1, 1, 1, 1])
  for (const name of ['', 'a "quoted" \\ name', '\n\u0001', '名前 🦌', 'constructor', '__proto__', 'x'.repeat(300)])
    Object.defineProperty(tensors, name, {
      value: tensor([made]),
      enumerable: true,
      configurable: true,
      writable: true,
    })
  const metadata = JSON.parse('{"format": "pt", "": "", "__proto__": "own", "ключ": "знач"}')
  const path = fresh()
  await writeTensors(path, tensors, { metadata })
  const back = await readTensors(path)
  t.deepEqual(Object.keys(back.tensors).sort(), Object.keys(tensors).sort())
  for (const [name, want] of Object.entries(tensors)) {
    const got = Object.getOwnPropertyDescriptor(back.tensors, name)?.value as Tensor
    t.is(got.dtype, want.dtype, name)
    t.deepEqual(got.shape, want.shape, name)
    t.deepEqual(got.read(), want.read(), name)
  }
  t.deepEqual(Object.entries(back.metadata).sort(), Object.entries(metadata).sort())
})

test('a file without tensors, and tensors that outlive their file', async (t) => {
  const path = fresh()
  await writeTensors(path, {})
  t.deepEqual(await readTensors(path), { tensors: {}, metadata: {} })
  await writeTensors(path, { x: tensor([1, 2, 3]) })
  const { tensors } = await readTensors(path)
  writeFileSync(path, '')
  t.deepEqual([...(tensors['x'] as Tensor).toFloat32()], [1, 2, 3])
})

// ---- files that are not what they say -----------------------------------------------------------------------------------

interface Raw {
  /** The length that the first eight bytes claim; default the true one. */
  length?: bigint
  header: string | Uint8Array
  data?: number
}
function bytes({ length, header, data = 0 }: Raw): Uint8Array {
  const text = typeof header === 'string' ? new TextEncoder().encode(header) : header
  const out = new Uint8Array(8 + text.length + data)
  new DataView(out.buffer).setBigUint64(0, length ?? BigInt(text.length), true)
  out.set(text, 8)
  return out
}
const entry = (dtype: unknown, shape: unknown, offsets: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: offsets })
const one = (body: string, data = 8): Raw => ({ header: `{"x":${body}}`, data })
const good = entry('F32', [2], [0, 8])
const deep = (open: string, n = 200000) => `{"x":${open.repeat(n)}`

const broken: Record<string, Uint8Array | Raw> = {
  'nothing at all': new Uint8Array(0),
  'seven bytes': new Uint8Array(7),
  'text instead': new TextEncoder().encode('this is not a safetensors file'),
  'a zip': new TextEncoder().encode('PK\u0003\u0004 ...............................'),
  'a length of nothing': { header: '' },
  'a length beyond the file': { length: 1000n, header: '{}' },
  'a length beyond the limit': { length: 100_000_001n, header: '{}' },
  'the largest length': { length: 2n ** 64n - 1n, header: '{}' },
  'a length that wraps round': { length: 2n ** 64n - 8n, header: '{}' },
  'a truncated header': { header: `{"x":${good}`, data: 8 },
  'truncated data': one(good, 7),
  'data left over': one(good, 9),
  'a list': { header: '[]' },
  'a space in front': { header: ' {}' },
  'text behind': { header: '{}x' },
  'two objects': { header: '{}{}' },
  'a zero byte': { header: '{}\u0000' },
  'a comment': { header: '{/* */}' },
  'a trailing comma': { header: `{"x":${good},}`, data: 8 },
  'bytes that are no UTF-8': { header: Uint8Array.of(0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x7b, 0x7d, 0x7d) },
  'deep lists': { header: deep('[') },
  'deep objects': { header: deep('{"a":') },
  'deep metadata': { header: `{"__metadata__":${'{"a":'.repeat(200000)}` },
  'a deep shape': one(`{"dtype":"F32","shape":${'['.repeat(200000)}`),
  'metadata that is a number': { header: '{"__metadata__":{"a":1}}' },
  'metadata that is a list': { header: '{"__metadata__":[]}' },
  'metadata twice': { header: '{"__metadata__":{},"__metadata__":{}}' },
  'a metadata key twice': { header: '{"__metadata__":{"a":"1","a":"2"}}' },
  'a tensor that is a number': { header: '{"x":1}' },
  'a tensor that is null': { header: '{"x":null}' },
  'a tensor twice': { header: `{"x":${good},"x":${entry('F32', [2], [8, 16])}}`, data: 16 },
  'no dtype': one('{"shape":[2],"data_offsets":[0,8]}'),
  'no shape': one('{"dtype":"F32","data_offsets":[0,8]}'),
  'no offsets': one('{"dtype":"F32","shape":[2]}'),
  'a key too many': one('{"dtype":"F32","shape":[2],"data_offsets":[0,8],"stride":[1]}'),
  'a key twice': one('{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}'),
  'an unknown dtype': one(entry('F64', [1], [0, 8])),
  'a dtype in lower case': one(entry('f32', [2], [0, 8])),
  'a dtype that is a number': one(entry(32, [2], [0, 8])),
  'a negative size': one(entry('F32', [-2], [0, 8])),
  'two negative sizes': one(entry('F32', [-1, -2], [0, 8])),
  'half a size': one(entry('F32', [2.5], [0, 8])),
  'a size in quotes': one(entry('F32', ['2'], [0, 8])),
  'a size of null': one(entry('F32', [null], [0, 8])),
  'a size beyond 64 bits': one('{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}'),
  'a size beyond 63 bits': one('{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}'),
  'a size beyond all numbers': one('{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}'),
  'a product that overflows to 2': one('{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}'),
  'a product that overflows to 0': one('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}', 0),
  'bytes that overflow': one('{"dtype":"I64","shape":[2305843009213693952],"data_offsets":[0,0]}', 0),
  'nothing times too much': one('{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}', 0),
  'nine axes': one(entry('F32', [1, 1, 1, 1, 1, 1, 1, 1, 2], [0, 8])),
  'a shape that is a number': one(entry('F32', 2, [0, 8])),
  'one offset': one(entry('F32', [2], [0])),
  'three offsets': one(entry('F32', [2], [0, 8, 8])),
  'no offsets in the list': one(entry('F32', [2], [])),
  'a negative offset': one(entry('F32', [2], [-8, 0])),
  'offsets that are no whole numbers': one(entry('F32', [2], [0.5, 8.5])),
  'offsets backwards': one(entry('F32', [2], [8, 0])),
  'offsets past the end': one(entry('F32', [2], [4, 12])),
  'offsets far past the end': one(
    '{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551615]}',
  ),
  'more bytes than the shape needs': one(entry('F32', [1], [0, 8])),
  'fewer bytes than the shape needs': one(entry('F32', [3], [0, 8])),
  'data that does not begin at 0': one(entry('F32', [2], [8, 16]), 16),
  'a hole': { header: `{"x":${good},"y":${entry('F32', [1], [12, 16])}}`, data: 16 },
  'an overlap': { header: `{"x":${good},"y":${entry('F32', [2], [4, 12])}}`, data: 12 },
  'the same bytes twice': { header: `{"x":${good},"y":${good}}`, data: 8 },
  'more tensors than anyone has': {
    header: `{${Array.from({ length: 100_001 }, (_, i) => `"${i}":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`)}}`,
  },
}

test.serial('broken and hostile files are ERR_FORMAT, name the file, and change nothing', async (t) => {
  const before = memory().current
  for (const [name, raw] of Object.entries(broken)) {
    const path = fresh()
    writeFileSync(path, raw instanceof Uint8Array ? raw : bytes(raw))
    const message = await codeOf(t, 'ERR_FORMAT', name, readTensors(path))
    t.true(message.includes(path.slice(-20)) || message.includes(folder.slice(0, 40)), `${name}: ${message}`)
    t.true(message.length < 500, `${name}: a message of ${message.length} characters`)
    rmSync(path)
  }
  t.is(memory().current, before)
})

test('what looks odd but is allowed', async (t) => {
  const allowed: Record<string, [Raw, Record<string, number[]>]> = {
    'spaces behind the header': [{ header: `{"x":${good}}    `, data: 8 }, { x: [0, 0] }],
    'white space inside': [{ header: `{\n "x" : ${good}\t}`, data: 8 }, { x: [0, 0] }],
    'tensors in another order than their data': [
      { header: `{"b":${entry('U8', [1], [8, 9])},"a":${good}}`, data: 9 },
      { a: [0, 0], b: [0] },
    ],
    // The floats begin at an odd byte, where they cannot be used in place.
    'data that is not aligned': [
      { header: `{"a":${entry('U8', [1], [0, 1])},"b":${entry('F32', [2], [1, 9])}}`, data: 9 },
      { a: [0], b: [0, 0] },
    ],
    booleans: [one(entry('BOOL', [8], [0, 8])), { x: [0, 0, 0, 0, 0, 0, 0, 0] }],
    'a scalar': [one(entry('I64', [], [0, 8])), { x: [0] }],
    'tensors without data': [
      { header: `{"x":${entry('F32', [0, 5], [0, 0])},"y":${entry('I32', [0], [0, 0])}}` },
      { x: [], y: [] },
    ],
    'names with escapes': [{ header: `{"\\u0061\\n":${good}}`, data: 8 }, { 'a\n': [0, 0] }],
  }
  for (const [name, [raw, want]] of Object.entries(allowed)) {
    const path = fresh()
    writeFileSync(path, bytes(raw))
    const { tensors } = await readTensors(path)
    const got = Object.fromEntries(Object.entries(tensors).map(([k, v]) => [k, [...v.toFloat32()]]))
    t.deepEqual(got, want, name)
  }
})

test('a file with any bytes changed or cut reads or is ERR_FORMAT', async (t) => {
  const path = fresh()
  await writeTensors(
    path,
    {
      weight: tensor([
        [1, 2],
        [3, 4],
      ]),
      ids: tensor([1n, 2n], [2], 'i64'),
    },
    { metadata: { a: 'b' } },
  )
  const whole = readFileSync(path)
  const { uniform } = generator(4)
  const below = (n: number) => Math.floor(uniform() * n)
  const copy = fresh()
  let refused = 0
  for (let i = 0; i < 600; i++) {
    const changed = Uint8Array.from(i % 3 === 0 ? whole.subarray(0, below(whole.length)) : whole)
    for (let k = below(4); k >= 0 && i % 3 !== 0; k--) changed[below(Math.min(200, whole.length))] = below(256)
    writeFileSync(copy, changed)
    const error = await readTensors(copy).then(
      ({ tensors }) => {
        for (const x of Object.values(tensors)) x.dispose()
        return null
      },
      (e: unknown) => e,
    )
    if (error !== null) {
      refused++
      if (!DeemError.isInstance(error) || error.code !== 'ERR_FORMAT') return t.fail(`variation ${i}: ${String(error)}`)
    }
  }
  t.true(refused > 300 && refused < 600, `${refused} of 600 refused`)
})

// ---- paths --------------------------------------------------------------------------------------------------------------

test('paths that cannot be read are ERR_IO', async (t) => {
  const file = fresh()
  await writeTensors(file, { x: tensor([1]) })
  const pipe = join(folder, 'pipe')
  t.is(spawnSync('mkfifo', [pipe]).status, 0)
  const dangling = join(folder, 'dangling')
  symlinkSync(join(folder, 'not there'), dangling)
  const cases: Record<string, string> = {
    'a missing file': join(folder, 'missing.safetensors'),
    'a missing folder': join(folder, 'missing', 'x.safetensors'),
    'a folder': folder,
    'a file as a folder': join(file, 'x'),
    'an empty path': '',
    'a zero byte': `${file}\u0000`,
    'a name that is too long': join(folder, 'x'.repeat(5000)),
    'a pipe': pipe,
    'a device': '/dev/zero',
    'a link to nothing': dangling,
  }
  for (const [name, path] of Object.entries(cases)) {
    await codeOf(t, 'ERR_IO', name, readTensors(path))
    const m = await Module.create('contrastive', { feature_dim: 2, vocab_size: 3, embed_dim: 2, pad_token_id: 0 })
    await codeOf(t, 'ERR_IO', `a model from ${name}`, m.load(path))
  }
  await codeOf(t, 'ERR_VALUE', 'a number', readTensors(5 as unknown as string))
  t.deepEqual([...((await readTensors(file)).tensors['x'] as Tensor).toFloat32()], [1])
})

test('paths that cannot be written are ERR_IO and leave nothing behind', async (t) => {
  const x = tensor([1])
  const file = fresh()
  await writeTensors(file, { x })
  const inside = join(folder, 'a folder')
  mkdirSync(join(inside, 'x.safetensors'), { recursive: true })
  const cases: Record<string, string> = {
    'a missing folder': join(folder, 'missing', 'x.safetensors'),
    'a folder': join(inside, 'x.safetensors'),
    'a file as a folder': join(file, 'x'),
    'an empty path': '',
    'a zero byte': `${file}\u0000`,
    'a name that is too long': join(inside, 'x'.repeat(300)),
  }
  for (const [name, path] of Object.entries(cases)) await codeOf(t, 'ERR_IO', name, writeTensors(path, { x }))
  t.deepEqual(leftovers(), [])
  t.deepEqual(readdirSync(inside), ['x.safetensors'])
})

// ---- writing ------------------------------------------------------------------------------------------------------------

test('what cannot be written is refused before anything is', async (t) => {
  const path = fresh()
  await writeTensors(path, { x: tensor([1, 2]) })
  const old = readFileSync(path)
  const gone = tensor([1])
  gone.dispose()
  await codeOf(t, 'ERR_VALUE', 'a tensor called __metadata__', writeTensors(path, { __metadata__: tensor([1]) }))
  await codeOf(t, 'ERR_DISPOSED', 'a disposed tensor', writeTensors(path, { gone }))
  await codeOf(t, 'ERR_DTYPE', 'an array', writeTensors(path, { x: { handle: [1] } as unknown as Tensor }))
  await codeOf(
    t,
    'ERR_VALUE',
    'metadata that is a number',
    writeTensors(path, { x: tensor([1]) }, { metadata: { a: 1 as unknown as string } }),
  )
  t.deepEqual(readFileSync(path), old)
  t.deepEqual(leftovers(), [])
})

test('replacing a file keeps who may read it', async (t) => {
  const path = fresh()
  await writeTensors(path, { x: tensor([1]) })
  chmodSync(path, 0o640)
  await writeTensors(path, { x: tensor([2]) })
  t.is(statSync(path).mode & 0o777, 0o640)
})

test('a write that is aborted leaves the old file', async (t) => {
  const path = fresh()
  await writeTensors(path, { x: tensor([1, 2]) })
  const old = readFileSync(path)
  const big = ops.full([1 << 24], 1, 'f32')
  for (const delay of [0, 1, 5]) {
    const stop = new AbortController()
    const writing = writeTensors(path, { big }, { signal: stop.signal })
    setTimeout(() => stop.abort(new Error('enough')), delay)
    const result = await writing.then(
      () => 'written',
      (e: unknown) => (e as Error).message,
    )
    t.true(result === 'enough' || result === 'written', result)
    if (result === 'enough') t.deepEqual(readFileSync(path), old)
    else await writeTensors(path, { x: tensor([1, 2]) })
    t.deepEqual(leftovers(), [])
  }
})

test.serial('a write without memory for its copies leaves the old file', async (t) => {
  const path = fresh()
  await writeTensors(path, { x: tensor([1, 2]) })
  const old = readFileSync(path)
  const view = ops.permute(ops.full([1000, 1001], 1, 'f32'), [1, 0])
  setMemoryLimit(memory().current + 1000)
  try {
    await codeOf(t, 'ERR_OUT_OF_MEMORY', 'a view', writeTensors(path, { view }))
  } finally {
    setMemoryLimit(0)
  }
  t.deepEqual(readFileSync(path), old)
  t.deepEqual(leftovers(), [])
})

test('a disk that fills up is ERR_IO and leaves the old file', async (t) => {
  const inside = mkdtempSync(join(folder, 'full-'))
  const path = join(inside, 'x.safetensors')
  await writeTensors(path, { x: tensor([1, 2]) })
  const old = readFileSync(path)
  // A limit on the size of files stands for the full disk: the write fails midway.
  const script = `
    import { ops, writeTensors } from 'deem'
    await writeTensors(${JSON.stringify(path)}, { big: ops.full([1 << 20], 1, 'f32') }).then(
      () => console.log('written'),
      (e) => console.log(e.code, e.message),
    )`
  const { stdout, stderr } = spawnSync(
    'bash',
    ['-c', `trap '' XFSZ; ulimit -f 1000; exec "$0" --input-type=module -e "$1"`, process.execPath, script],
    { encoding: 'utf8', cwd: fileURLToPath(new URL('../..', import.meta.url)) },
  )
  t.regex(stdout, /^ERR_IO .*File too large/, stderr)
  t.deepEqual(readFileSync(path), old)
  t.deepEqual(readdirSync(inside), ['x.safetensors'])
})
