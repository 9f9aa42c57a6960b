// Weights as torch.save writes them: read where they lie, and nothing that a pickle could do beside holding tensors.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { DeemError, type ErrorCode, Module, mapTensors } from 'deem'
import { generator } from '../_harness/random.js'
import { pickle, type SavedTensor, tensorPickle, torchEntries, type ZipEntry, zip } from '../_harness/torch-file.js'

const folder = mkdtempSync(join(tmpdir(), 'deem-torch-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))
let made = 0

function save(bytes: Uint8Array): string {
  const path = join(folder, `${made++}.bin`)
  writeFileSync(path, bytes)
  return path
}
const bytesOf = (a: ArrayBufferView) => new Uint8Array(a.buffer, a.byteOffset, a.byteLength)
const floats = (values: number[], rest: Partial<SavedTensor> = {}): SavedTensor => ({
  storage: 'FloatStorage',
  data: bytesOf(Float32Array.from(values)),
  elements: values.length,
  shape: [values.length],
  ...rest,
})
const small = { a: floats([1, 2, 3]) }

async function refused(path: string, code: ErrorCode): Promise<string> {
  const error = await mapTensors(path).then(
    () => 'it was read',
    (e: unknown) => e,
  )
  return DeemError.isInstance(error) && error.code === code ? error.message : `unexpected: ${String(error)}`
}

// ---- what is read -----------------------------------------------------------------------------------------------------

test('every dtype, shared storages, offsets, transposed and scalar tensors', async (t) => {
  const path = save(
    zip(
      torchEntries({
        f32: floats([1, 2, 3, 4, 5, 6], { shape: [2, 3] }),
        transposed: floats([], { elements: 6, shape: [3, 2], strides: [1, 3], key: '0' }),
        tail: floats([], { elements: 6, shape: [2], offset: 4, key: '0' }),
        scalar: floats([7], { shape: [] }),
        f16: { storage: 'HalfStorage', data: bytesOf(Uint16Array.of(0x3c00, 0xc000)), elements: 2, shape: [2] },
        bf16: { storage: 'BFloat16Storage', data: bytesOf(Uint16Array.of(0x3f80, 0xc000)), elements: 2, shape: [2] },
        i64: { storage: 'LongStorage', data: bytesOf(BigInt64Array.of(5n, -6n)), elements: 2, shape: [1, 2] },
        i32: { storage: 'IntStorage', data: bytesOf(Int32Array.of(8)), elements: 1, shape: [1] },
        bool: { storage: 'BoolStorage', data: Uint8Array.of(1, 0), elements: 2, shape: [2] },
      }),
    ),
  )
  const { tensors } = await mapTensors(path)
  const read = (name: string) => [tensors[name]?.dtype, tensors[name]?.shape, [...(tensors[name]?.toFloat32() ?? [])]]
  t.deepEqual(read('f32'), ['f32', [2, 3], [1, 2, 3, 4, 5, 6]])
  t.deepEqual(read('transposed'), ['f32', [3, 2], [1, 4, 2, 5, 3, 6]])
  t.deepEqual(read('tail'), ['f32', [2], [5, 6]])
  t.deepEqual(read('scalar'), ['f32', [], [7]])
  t.deepEqual(read('f16'), ['f16', [2], [1, -2]])
  t.deepEqual(read('bf16'), ['bf16', [2], [1, -2]])
  t.deepEqual(read('i64'), ['i64', [1, 2], [5, -6]])
  t.deepEqual(read('i32'), ['i32', [1], [8]])
  t.deepEqual(read('bool'), ['u8', [2], [1, 0]])
})

test('a state dict where trainers put it', async (t) => {
  for (const key of ['state_dict', 'model', 'module']) {
    const inner = Buffer.concat([Buffer.from('}('), pickle.text('a'), tensorPickle(small.a, '0'), Buffer.from('u')])
    const outer = Buffer.concat([
      Buffer.from('}('),
      pickle.text('epoch'),
      pickle.number(3),
      pickle.text(key),
      inner,
      Buffer.from('u'),
    ])
    const entries = torchEntries(small).map((e) => (e.name.endsWith('.pkl') ? { ...e, data: pickle.whole(outer) } : e))
    const { tensors } = await mapTensors(save(zip(entries)))
    t.deepEqual([...(tensors['a']?.toFloat32() ?? [])], [1, 2, 3], key)
  }
})

test('mapped weights of any dtype go into a model', async (t) => {
  using m = await Module.create('text_head', { hidden_size: 2, txt_vocab_size: 4, orig_txt_vocab_size: 3 })
  const name = 'head.weight'
  const shape = m.parameters().find((p) => p.name === name)?.shape as number[]
  const n = shape.reduce((a, v) => a * v, 1)
  const half = { storage: 'HalfStorage', data: bytesOf(new Uint16Array(n).fill(0x3800)), elements: n, shape }
  const { tensors } = await mapTensors(save(zip(torchEntries({ [name]: half }))))
  await m.assignAll(tensors)
  t.true(
    m
      .read(name)
      .toFloat32()
      .every((v) => v === 0.5),
  )
  await t.throwsAsync(m.assignAll({ nowhere: tensors[name] as never }), { code: 'ERR_WEIGHTS' })
})

// ---- what is refused --------------------------------------------------------------------------------------------------

function withPickle(data: Uint8Array): string {
  return save(zip(torchEntries(small).map((e) => (e.name.endsWith('.pkl') ? { ...e, data } : e))))
}

test('pickles that call or name what is not allowed', async (t) => {
  const calls: [string, Buffer][] = [
    ['os.system', pickle.called('os.system', pickle.text('true'))],
    ['builtins.eval', pickle.called('builtins.eval', pickle.text('1'))],
    ['posix.system', pickle.called('posix.system', pickle.text('true'))],
    ['torch.load', pickle.called('torch.load', pickle.text('x'))],
    ['__proto__', pickle.called('x.__proto__')],
    ['torch.FloatStorage', pickle.called('torch.FloatStorage')],
    ['toString', Buffer.from('ctoString\ntoString\n')],
    ['constructor', Buffer.from('cconstructor\nname\n')],
  ]
  for (const [name, body] of calls)
    t.regex(await refused(withPickle(pickle.whole(body)), 'ERR_FORMAT'), /not allowed/, name)
  // By protocol 4's opcode for names, and by calls of objects and of their methods.
  const stacked = Buffer.concat([
    Buffer.from([0x8c, 2]),
    Buffer.from('os'),
    Buffer.from([0x8c, 6]),
    Buffer.from('system'),
    Buffer.from([0x93]),
  ])
  t.regex(await refused(withPickle(pickle.whole(stacked)), 'ERR_FORMAT'), /'os.system' is not allowed/)
  for (const opcode of [
    'i',
    'o',
    '\x81',
    '\x92',
    'P',
    'I',
    'L',
    'S',
    'V',
    'F',
    'p',
    'g',
    '\x82',
    '\x8f',
    '\x96',
    '\x97',
  ])
    t.regex(
      await refused(withPickle(pickle.whole(Buffer.from(opcode, 'latin1'), Buffer.alloc(16))), 'ERR_FORMAT'),
      /opcode 0x.. at byte 2 is not allowed/,
      opcode,
    )
})

test('pickles that are broken, deep or endless', async (t) => {
  const cases: [RegExp, Uint8Array][] = [
    [/ends within a value/, Uint8Array.of(0x80, 2)],
    [/ends within a value/, Buffer.from([0x80, 2, 0x58, 255, 255, 255, 255])],
    [/a value is missing/, pickle.whole(Buffer.from('s'))],
    [/a mark is missing/, pickle.whole(Buffer.from('t'))],
    [/more than one value/, pickle.whole(Buffer.from('NN'))],
    [/more than one value/, pickle.whole(Buffer.from('(N'))],
    [/does not exist/, pickle.whole(Buffer.from([0x68, 9]))],
    [/nested deeper/, pickle.whole(Buffer.alloc(100, '('))],
    [/more than 4000000 values/, pickle.whole(Buffer.alloc(4_000_001, 'N'))],
    [/protocol above 5/, Uint8Array.of(0x80, 9, 0x4e, 0x2e)],
    [/no dictionary/, pickle.whole(Buffer.from('NNNs'))],
    [/no list/, pickle.whole(Buffer.from('NNa'))],
    [/no function/, pickle.whole(Buffer.from('N)R'))],
    [/no storage/, pickle.whole(Buffer.from('NQ'))],
    [/not UTF-8/, pickle.whole(Buffer.from([0x58, 1, 0, 0, 0, 0xff]))],
    [/no tensors by name/, pickle.whole(Buffer.from('}'))],
    [/no tensors by name/, pickle.whole(Buffer.from('N'))],
    [/whole number of more than 8/, pickle.whole(Buffer.from([0x8a, 200]), Buffer.alloc(200, 1))],
  ]
  for (const [says, data] of cases) t.regex(await refused(withPickle(data), 'ERR_FORMAT'), says)
  // A list that holds itself is a value like another, just no tensor.
  const loop = pickle.whole(Buffer.from([0x5d, 0x71, 0, 0x68, 0, 0x61]))
  t.regex(await refused(withPickle(loop), 'ERR_FORMAT'), /no tensors by name/)
})

test('tensors that reach beyond their storage, and storages that lie', async (t) => {
  const cases: [RegExp, SavedTensor][] = [
    [/reaches element/, floats([1, 2, 3], { shape: [4] })],
    [/reaches element/, floats([1, 2, 3], { shape: [3], offset: 1 })],
    [/reaches element/, floats([1, 2, 3], { shape: [2], strides: [3] })],
    [
      /reaches element/,
      floats([1, 2, 3], { shape: [1 << 30, 1 << 30, 1 << 30], strides: [1 << 30, 1 << 30, 1 << 30] }),
    ],
    [/whole number of at least 0/, floats([1, 2, 3], { offset: -1 })],
    [/whole number of at least 0/, floats([1, 2, 3], { strides: [-1] })],
    [/differ in length/, floats([1, 2, 3], { strides: [1, 1] })],
    [/should hold 16 bytes but holds 12/, floats([1, 2, 3], { elements: 4 })],
    [/is missing/, floats([1], { key: '9' })],
    [
      /QInt8Storage, which is not supported/,
      { storage: 'QInt8Storage', data: Uint8Array.of(1), elements: 1, shape: [1] },
    ],
  ]
  for (const [says, tensor] of cases) t.regex(await refused(save(zip(torchEntries({ a: tensor }))), 'ERR_FORMAT'), says)
  const doubles = { storage: 'DoubleStorage', data: bytesOf(Float64Array.of(1)), elements: 1, shape: [1] }
  t.regex(await refused(save(zip(torchEntries({ a: doubles }))), 'ERR_DTYPE'), /'a' is f64/)
})

test('archives that are broken, compressed, doubled or no archives', async (t) => {
  const good = torchEntries(small)
  const changed = (name: RegExp, change: Partial<ZipEntry>) =>
    zip(good.map((e) => (name.test(e.name) ? { ...e, ...change } : e)))
  const cases: Uint8Array[] = [
    Buffer.alloc(0),
    Buffer.from('PK'),
    Buffer.alloc(4096),
    zip([]),
    zip(good.filter((e) => !e.name.endsWith('.pkl'))),
    zip([...good, { name: 'other/data.pkl', data: Buffer.from('N.') }]),
    zip([...good, good[2] as ZipEntry]),
    changed(/data\/0$/, { claims: { method: 8 } }),
    changed(/data\/0$/, { claims: { size: 1 << 30 } }),
    changed(/data\/0$/, { claims: { size: 1 << 30, compressed: 12 } }),
    changed(/data\/0$/, { claims: { offset: 1 << 30 } }),
    changed(/byteorder$/, { data: Buffer.from('big') }),
    changed(/data\.pkl$/, { claims: { size: 0xfffffff0 } }),
  ]
  for (const [i, bytes] of cases.entries())
    t.notRegex(await refused(save(bytes), 'ERR_FORMAT'), /^unexpected/, `case ${i}`)
  const whole = zip(good)
  for (let n = 0; n < whole.length; n += 7)
    t.notRegex(await refused(save(whole.subarray(0, n)), 'ERR_FORMAT'), /^unexpected/, `cut to ${n}`)
  t.regex(await refused(join(folder, 'nowhere.bin'), 'ERR_IO'), /nowhere/)
  t.notRegex(await refused(folder.concat('/.bin'), 'ERR_IO'), /^unexpected/)
})

test('random damage is an error or harmless', async (t) => {
  const { uniform } = generator(7)
  const below = (n: number) => Math.floor(uniform() * n)
  const whole = zip(torchEntries({ a: floats([1, 2, 3]), b: floats([4, 5, 6, 7], { shape: [2, 2] }) }))
  for (let i = 0; i < 400; i++) {
    const bytes = Buffer.from(whole)
    for (let k = 0; k <= below(4); k++) bytes[below(bytes.length)] = below(256)
    const path = save(bytes)
    await mapTensors(path).then(
      ({ tensors }) => {
        for (const x of Object.values(tensors)) x.toFloat32()
      },
      (e: unknown) => t.true(DeemError.isInstance(e), String(e)),
    )
  }
  t.pass()
})
