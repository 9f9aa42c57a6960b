// The host side of the CUDA backend on an emulated GPU (_harness/emulated.ts). Kernels have tests of their own (test/cuda).
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import {
  backward,
  Deem,
  type DType,
  devices,
  emptyCache,
  loadModel,
  memory,
  ops,
  readTensors,
  resetPeakMemory,
  setMemoryLimit,
  synchronize,
  tensor,
  writeTensors,
} from 'deem'
import { AdamW, trainStep } from 'deem/train'
import { cudaTest as cuda } from '../_harness/emulated.js'
import { collect } from '../_harness/memory.js'
import { nano, nanoConfig, nanoWeights } from '../_harness/nano.js'

const folder = mkdtempSync(join(tmpdir(), 'deem-cuda-'))
test.after.always(() => rmSync(folder, { recursive: true }))
test.beforeEach(collect)

const gpu = { device: 'cuda' } as const

cuda('devices lists it', (t) => {
  const found = devices().filter((d) => d.device.startsWith('cuda'))
  t.true(found.length >= 1)
  t.like(found[0], { device: 'cuda:0', usable: true, why: '' })
  t.regex(found[0]?.capability ?? '', /^\d+\.\d$/)
  t.is(tensor([1], undefined, 'f32', { device: 'auto' }).device, 'cuda')
  t.is(tensor([1], undefined, 'f32', { device: 'cuda:0' }).device, 'cuda')
  t.throws(() => tensor([1], undefined, 'f32', { device: 'cuda:99' }), { code: 'ERR_DEVICE', message: /cuda:99/ })
})

cuda('every dtype goes there and comes back, views and nothing too', async (t) => {
  const bits: [DType, Float32Array | Uint16Array | BigInt64Array | Int32Array | Uint8Array][] = [
    ['f32', Float32Array.of(1.5, -0, 3e38, 4, 5, 6)],
    ['bf16', Uint16Array.of(1, 2, 3, 0x7f80, 5, 6)],
    ['f16', Uint16Array.of(1, 2, 3, 0x7c00, 5, 6)],
    ['i64', BigInt64Array.of(1n, -2n, 3n, 2n ** 62n, 5n, 6n)],
    ['i32', Int32Array.of(1, -2, 3, 4, 5, 6)],
    ['u8', Uint8Array.of(1, 2, 3, 4, 5, 255)],
  ]
  for (const [dtype, values] of bits) {
    using x = tensor(values, [2, 3], dtype, gpu)
    t.is(x.device, 'cuda')
    t.deepEqual(x.read(), values, dtype)
    t.deepEqual(await x.data(), values, dtype)
    t.deepEqual(x.to('cpu').read(), values, dtype)
    t.deepEqual(tensor(values, [2, 3], dtype).to('cuda').read(), values, dtype)
    const turned = ops.permute(x, [1, 0])
    t.deepEqual(
      [...turned.read()],
      [0, 3, 1, 4, 2, 5].map((i) => values[i] as number),
      dtype,
    )
    t.deepEqual(turned.read(), ops.permute(x.to('cpu'), [1, 0]).read(), dtype)
    t.is(ops.slice(x, 0, 0, 0).read().length, 0)
  }
  t.is(ops.slice(tensor([7, 8], undefined, 'f32', gpu), 0, 1, 2).item(), 8)
  t.deepEqual([...ops.full([3], 2.5, 'bf16', 'cuda').toFloat32()], [2.5, 2.5, 2.5])
})

cuda('copies of many sizes arrive whole, whichever stream takes them', (t) => {
  for (const n of [1, 63, 65_536, 1 << 18, (1 << 20) + 1, (1 << 22) + 3]) {
    const data = Float32Array.from({ length: n }, (_, i) => (i * 2654435761) % 16777213)
    using x = tensor(data, [n], 'f32', gpu)
    using twice = ops.add(x, x)
    // Fresh memory that work is queued behind: large uploads go past it.
    using y = tensor(data, [n], 'f32', gpu)
    using rest = ops.sub(twice, y)
    t.true(Buffer.from(rest.read().buffer).equals(Buffer.from(data.buffer)), `${n}`)
  }
})

cuda('gradients pass between devices', async (t) => {
  const x = tensor([1, 2, 3])
  x.requiresGrad = true
  const there = ops.mul(x.to('cuda'), tensor([4, 5, 6], undefined, 'f32', gpu))
  const back = ops.mul(there.to('cpu'), x)
  await backward([ops.sum(back, [0], false)])
  t.is(x.grad?.device, 'cpu')
  t.deepEqual([...(x.grad?.toFloat32() ?? [])], [8, 20, 36])
  const w = tensor([1, 2], undefined, 'f32', gpu)
  w.requiresGrad = true
  for (let i = 0; i < 3; i++) await backward([ops.mul(w, w)], [tensor([1, 10])])
  t.is(w.grad?.device, 'cuda')
  t.deepEqual([...(w.grad?.toFloat32() ?? [])], [6, 120])
})

cuda('devices do not mix', (t) => {
  const a = tensor([1, 2], undefined, 'f32', gpu)
  const b = tensor([1, 2])
  for (const mixed of [
    () => ops.add(a, b),
    () => ops.matmul(ops.reshape(a, [1, 2]), ops.reshape(b, [2, 1]), false, false),
    () => ops.cat([a, b], 0),
  ])
    t.throws(mixed, { code: 'ERR_DEVICE', message: /different devices|another device|are on/ })
})

cuda('memory is counted, limited and given back', (t) => {
  const MiB = 2 ** 20
  emptyCache(gpu)
  resetPeakMemory(gpu)
  const start = memory(gpu)
  const host = memory({ device: 'cpu' }).current
  const a = ops.full([MiB], 1, 'f32', 'cuda')
  const b = ops.full([MiB / 4], 1, 'f32', 'cuda')
  t.is(memory(gpu).current - start.current, 5 * MiB)
  t.true(memory(gpu).peak >= memory(gpu).current)
  t.is(memory({ device: 'cpu' }).current, host)
  a.dispose()
  t.is(memory(gpu).current - start.current, MiB)
  const { allocations, reserved } = memory(gpu)
  ops.full([MiB], 1, 'f32', 'cuda').dispose()
  t.is(memory(gpu).allocations, allocations, 'the block is used again')
  setMemoryLimit(memory(gpu).current + 2 * MiB, gpu)
  t.true(memory(gpu).reserved < reserved, 'a limit drops what is cached')
  const error = t.throws(() => ops.full([MiB], 1, 'f32', 'cuda'), { code: 'ERR_OUT_OF_MEMORY' })
  t.regex(
    error.message,
    /allocating 4194304 bytes on the GPU would exceed the limit of \d+ bytes; \d+ are in use and 2097152 are free/,
  )
  setMemoryLimit(0, gpu)
  b.dispose()
  emptyCache(gpu)
  t.true(memory(gpu).reserved >= memory(gpu).current)
})

cuda('files hold tensors of any device', async (t) => {
  const file = join(folder, 'both.safetensors')
  const x = tensor(
    [
      [1, 2, 3],
      [4, 5, 6],
    ],
    undefined,
    'f32',
    gpu,
  )
  await writeTensors(file, {
    x,
    turned: ops.permute(x, [1, 0]),
    narrow: ops.cast(x, 'bf16'),
    ids: tensor([1, 2], undefined, 'i64'),
  })
  const { tensors } = await readTensors(file)
  t.deepEqual([...(tensors['turned']?.toFloat32() ?? [])], [1, 4, 2, 5, 3, 6])
  t.deepEqual([...(tensors['narrow']?.toFloat32() ?? [])], [1, 2, 3, 4, 5, 6])
  await t.throwsAsync(writeTensors(file, { big: ops.full([1], 1e6, 'f32', 'cuda') }, { dtype: 'f16' }), {
    code: 'ERR_VALUE',
  })
})

cuda('a model starts with the same bits, takes weights and gives them back', async (t) => {
  const config = nanoConfig()
  using host = await Deem.build(config, { seed: 3, dtype: 'bf16' })
  using model = await Deem.build(config, { seed: 3, dtype: 'bf16', ...gpu })
  for (const { name } of model.parameters()) {
    using a = model.read(name)
    using b = host.read(name)
    t.is(a.device, 'cuda')
    t.deepEqual(a.read(), b.read(), name)
  }
  model.keepMasters('')
  host.keepMasters('')
  await model.load(nanoWeights)
  await host.load(nanoWeights)
  await model.save(join(folder, 'gpu.safetensors'), { dtype: 'f32' })
  await host.save(join(folder, 'cpu.safetensors'), { dtype: 'f32' })
  const [a, b] = await Promise.all(['gpu', 'cpu'].map((name) => readTensors(join(folder, `${name}.safetensors`))))
  t.deepEqual(Object.keys(a?.tensors ?? {}), Object.keys(b?.tensors ?? {}))
  for (const [name, x] of Object.entries(a?.tensors ?? {})) t.deepEqual(x.read(), b?.tensors[name]?.read(), name)
})

cuda('a training step on it is that of the cpu', async (t) => {
  const { model: host, inputs } = await nano()
  using model = await Deem.build(nanoConfig(), gpu)
  await model.load(nanoWeights)
  const losses: Record<string, number>[] = []
  for (const m of [host, model]) {
    using optimizer = new AdamW(m, { lr: 1e-3 })
    for (let i = 0; i < 2; i++) losses.push(await trainStep(m, { ...inputs }, optimizer, { seed: 1, step: i }))
  }
  await synchronize()
  for (let i = 0; i < 2; i++)
    for (const [name, want] of Object.entries(losses[i] ?? {})) {
      const got = losses[i + 2]?.[name] ?? Number.NaN
      t.true(Math.abs(got - want) <= 1e-3 * Math.max(1, Math.abs(want)), `${name} of step ${i}: ${got}, not ${want}`)
    }
  host.dispose()
})

cuda('the model of the package talks on it', async (t) => {
  const answers: string[] = []
  for (const device of ['cpu', 'cuda'] as const) {
    using p = await loadModel('deem-nano', { device })
    answers.push((await p.generateText('is there a fox ?', { maxTokens: 3 })).text)
  }
  t.is(answers[1], answers[0])
})
