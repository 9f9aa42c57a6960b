// Training in bf16: weights and gradients of eight bits, updates in f32 masters, which loading, saving and resuming keep whole.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import {
  Deem,
  type DType,
  type ErrorCode,
  loadDeem,
  Module,
  memory,
  ops,
  readTensors,
  saveDeem,
  type Tensor,
  tensor,
} from 'deem'
import { AdamW, loadCheckpoint, saveCheckpoint, trainLoop, trainStep } from 'deem/train'
import { give, trainable } from '../_harness/gradients.js'
import { layout } from '../_harness/hf-layout.js'
import { collect } from '../_harness/memory.js'
import { nano, nanoConfig, nanoWeights } from '../_harness/nano.js'
import { compare, generator } from '../_harness/op.js'
import { trainee } from '../_harness/trainee.js'

const folder = mkdtempSync(join(tmpdir(), 'deem-mixed-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))
let files = 0
const file = () => join(folder, `${files++}.safetensors`)

const leaf = (values: ArrayLike<number>, dtype: DType = 'bf16') => trainable(values, dtype)
const rounded = (values: ArrayLike<number>, dtype: DType = 'bf16') => [
  ...ops.cast(tensor(Float32Array.from(values), [values.length]), dtype).toFloat32(),
]

async function stateOf(optimizer: AdamW): Promise<Record<string, Float32Array>> {
  const path = file()
  await optimizer.save(path)
  const { tensors } = await readTensors(path)
  return Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, t.toFloat32()]))
}

for (const dtype of ['bf16', 'f16'] as const)
  test(`${dtype} weights are what an f32 AdamW of the same gradients has, rounded`, async (t) => {
    const { normal } = generator(4)
    const n = 70001 // more than two pieces, and a rest
    const x = leaf(Array.from({ length: n }, normal), dtype)
    const twin = leaf(x.toFloat32(), 'f32')
    const options = { lr: 0.01, weightDecay: 0.05, maxGradNorm: 1, betas: [0.9, 0.995], eps: 1e-6 } as const
    using optimizer = new AdamW({ x }, options)
    using reference = new AdamW({ x: twin }, options)
    // The same in plain numbers.
    const w = [...x.toFloat32()]
    const [m, v] = [new Float64Array(n), new Float64Array(n)]
    for (let step = 1; step <= 4; step++) {
      const g = rounded(Array.from({ length: n }, normal), dtype)
      await give(x, g)
      await give(twin, g)
      const norm = await optimizer.step(step / 4)
      const other = await reference.step(step / 4)
      t.true(Math.abs(norm - other) < 1e-12 * norm, `${norm}, ${other}: only the order of the sum differs`)
      optimizer.zeroGrad()
      reference.zeroGrad()
      const exact = Math.sqrt(g.reduce((a, k) => a + k * k, 0))
      t.true(Math.abs(norm - exact) < 1e-9 * exact, `norm ${norm}, not ${exact}`)
      const lr = (0.01 * step) / 4
      for (let i = 0; i < n; i++) {
        const k = (g[i] as number) * Math.min(1, 1 / (exact + 1e-6))
        m[i] = 0.9 * (m[i] as number) + 0.1 * k
        v[i] = 0.995 * (v[i] as number) + 0.005 * k * k
        const size = Math.sqrt((v[i] as number) / (1 - 0.995 ** step)) + 1e-6
        w[i] = (w[i] as number) * (1 - lr * 0.05) - (lr * (m[i] as number)) / (1 - 0.9 ** step) / size
      }
    }
    const state = await stateOf(optimizer)
    t.deepEqual(state['master.x'], twin.toFloat32(), 'bit by bit')
    compare(t, 'master', state['master.x'] as Float32Array, w, 2e-6)
    t.deepEqual([...x.toFloat32()], rounded(state['master.x'] as Float32Array, dtype))
  })

test('a thousand steps of a ten-thousandth each add up; without masters they are lost', async (t) => {
  const run = async (masterWeights: boolean) => {
    const x = leaf([1, -2, 64])
    using optimizer = new AdamW({ x }, { lr: 1e-4, masterWeights })
    for (let step = 0; step < 1000; step++) {
      await give(x, [1, -1, 0.5])
      await optimizer.step()
      optimizer.zeroGrad()
    }
    return [...x.toFloat32()]
  }
  t.deepEqual(await run(true), rounded([0.9, -1.9, 63.9]))
  t.deepEqual(await run(false), [1, -2, 64])
})

test('without masters the weights themselves are updated, each step rounded', async (t) => {
  const x = leaf([1, 1, 1])
  using optimizer = new AdamW({ x }, { lr: 0.25, masterWeights: false })
  await give(x, [1, -1, 0])
  await optimizer.step()
  t.deepEqual([...x.toFloat32()], [0.75, 1.25, 1])
  t.deepEqual(Object.keys(await stateOf(optimizer)).sort(), ['exp_avg.x', 'exp_avg_sq.x', 'step.x'])
})

test('gradients of many backward passes add up in f32', async (t) => {
  const x = leaf([1, 1])
  await give(x, [1, 0])
  t.is(x.grad?.dtype, 'bf16', 'one part is as it comes')
  // 1 + 2^-9 is no bf16: added up there, all of these would vanish.
  for (let i = 0; i < 256; i++) await give(x, [2 ** -9, 2 ** -9])
  t.is(x.grad?.dtype, 'f32')
  t.deepEqual([...(x.grad as Tensor).toFloat32()], [1.5, 0.5])
  using optimizer = new AdamW({ x }, { lr: 0.5, maxGradNorm: 100 })
  t.is(await optimizer.step(), Math.hypot(1.5, 0.5))
  t.deepEqual([...x.toFloat32()], [0.5, 0.5])
})

const small = { feature_dim: 24, vocab_size: 50, embed_dim: 16, pad_token_id: 0 }
const bytesOf = async ({ model, optimizer }: { model: Module; optimizer: AdamW }) => {
  const [weights, state] = [file(), file()]
  await model.save(weights)
  await optimizer.save(state)
  return [readFileSync(weights), readFileSync(state)]
}

test('stopped and resumed by new objects: the same bits as in one go, masters included', async (t) => {
  using data = await trainee(1)
  const begin = async (seed: number) => {
    const model = await Module.create('contrastive', small, { seed, dtype: 'bf16' })
    return { model, optimizer: new AdamW(model, { lr: 1e-3, maxGradNorm: 1 }) }
  }
  const loop = (run: Awaited<ReturnType<typeof begin>>, steps: number, checkpoint: string) =>
    trainLoop({
      steps,
      models: { model: run.model },
      optimizer: run.optimizer,
      batch: (at) => at,
      train: async (at) => {
        const { loss } = await trainStep(run.model, data.inputs, run.optimizer, { method: 'loss', step: at })
        return { loss: loss as number }
      },
      checkpoint,
    })
  const one = await begin(1)
  const { history } = await loop(one, 9, join(folder, 'whole'))
  const want = await bytesOf(one)
  const halves = join(folder, 'halves')
  await loop(await begin(1), 4, halves)
  const resumed = await begin(2)
  t.deepEqual((await loop(resumed, 9, halves)).history, history)
  t.deepEqual(await bytesOf(resumed), want)
  const masters = Object.keys(await stateOf(resumed.optimizer)).filter((name) => name.startsWith('master.'))
  t.is(masters.length, resumed.optimizer.parameters.length)
})

test('a bf16 run learns what an f32 run does', async (t) => {
  using data = await trainee(1)
  const losses = async (dtype: DType) => {
    using model = await Module.create('contrastive', small, { seed: 1, dtype })
    using optimizer = new AdamW(model, { lr: 1e-3 })
    const curve: number[] = []
    for (let step = 0; step < 150; step++)
      curve.push((await trainStep(model, data.inputs, optimizer, { method: 'loss' }))['loss'] as number)
    return curve
  }
  const [f32, bf16] = [await losses('f32'), await losses('bf16')]
  t.log(`f32 ${f32[0]?.toFixed(3)} to ${f32.at(-1)?.toFixed(3)}, bf16 to ${bf16.at(-1)?.toFixed(3)}`)
  t.true((f32.at(-1) as number) < 0.5 * (f32[0] as number))
  for (const [i, a] of f32.entries()) t.true(Math.abs((bf16[i] as number) - a) < 0.05 * (f32[0] as number), `step ${i}`)
})

/** All tensors of two files equal, bit by bit, after rounding the second's. */
async function sameTensors(t: ExecutionContext, got: string, want: string, dtype: DType) {
  const [a, b] = [(await readTensors(got)).tensors, (await readTensors(want)).tensors]
  t.true(Object.keys(a).length > 100)
  for (const [name, x] of Object.entries(a)) {
    if (x.dtype !== dtype) t.fail(`${name} is ${x.dtype}`)
    const y = ops.cast(b[name] as Tensor, dtype)
    if (Buffer.compare(new Uint8Array(x.read().buffer), new Uint8Array(y.read().buffer)) !== 0) t.fail(name)
  }
}

test.serial('masters keep loaded f32 weights whole through training of none of them, and are saved', async (t) => {
  using model = await Deem.build(nanoConfig(), { dtype: 'bf16' })
  const count = model.keepMasters(/./)
  t.is(count, model.parameters().filter((p) => !p.buffer).length)
  for (const wrong of [true, undefined, 3, [null]])
    t.throws(() => model.keepMasters(wrong as never), { code: 'ERR_VALUE' })
  model.freeze('visual_tokenizer.encoder.vae.')
  await model.load(nanoWeights)
  using optimizer = new AdamW(model, { lr: 1e-3 })
  const { model: whole32, inputs } = await nano()
  whole32.dispose()
  await model.trainStep(inputs, optimizer, { lrFactor: 0 })
  const [own, whole] = [file(), file()]
  await model.save(own)
  await model.save(whole, { dtype: 'f32' })
  const buffers = new Set(model.parameters().flatMap((p) => (p.buffer ? [p.name] : [])))
  const stored = (await readTensors(nanoWeights)).tensors
  const got = (await readTensors(whole)).tensors
  for (const [name, x] of Object.entries(got)) if (!buffers.has(name)) t.true(equal(x, stored[name] as Tensor), name)
  await sameTensors(t, own, nanoWeights, 'bf16')

  // Its own rounded values say nothing new; others do.
  await model.load(own)
  t.true(equal(model.view('soi_token', 'f32'), stored['soi_token'] as Tensor))
  using other = ops.full(model.read('soi_token').shape, 0.1, 'f32')
  model.assign('soi_token', ops.cast(other, 'bf16'))
  t.is(model.view('soi_token', 'f32').toFloat32()[0], model.read('soi_token').toFloat32()[0])
  model.assign('soi_token', other)
  t.is(model.view('soi_token', 'f32').toFloat32()[0], Math.fround(0.1))
  t.is(model.view('soi_token').dtype, 'bf16')

  await saveDeem(model, join(folder, 'saved'), { dtype: 'f32' })
  const again = (await readTensors(join(folder, 'saved', 'model.safetensors'))).tensors
  t.is(again['soi_token']?.toFloat32()[0], Math.fround(0.1))
  model.dropMasters(/./)
  t.is(model.view('soi_token', 'f32').dtype, 'bf16')
})

const equal = (a: Tensor, b: Tensor) =>
  Buffer.compare(new Uint8Array(a.read().buffer), new Uint8Array(b.read().buffer)) === 0

test.serial('loadDeem keeps what files of more bits say', async (t) => {
  const { model } = await loadDeem(layout('deem'), { dtype: 'bf16', masters: 'context_feat_proj' })
  const plain = await loadDeem(layout('deem'), { dtype: 'f16' })
  const name = 'context_feat_proj.weight'
  t.deepEqual(model.view(name, 'f32').toFloat32(), plain.model.read(name).toFloat32())
  t.deepEqual(model.view('soi_token', 'f32').dtype, 'bf16', 'those asked for only')
  for (const m of [model, plain.model]) m.dispose()
})

test.serial('memory: what training of bf16 holds does not grow, and masters go when they are dropped', async (t) => {
  const { model: whole32, inputs } = await nano()
  whole32.dispose()
  await collect()
  const before = memory().current
  const model = await Deem.build(nanoConfig(), { dtype: 'bf16' })
  await model.load(nanoWeights)
  const alone = memory().current
  const optimizer = new AdamW(model, { lr: 1e-4 })
  const weights = optimizer.parameters.reduce(
    (sum, { name }) => sum + (model.parameters().find((p) => p.name === name)?.shape ?? []).reduce((a, b) => a * b, 1),
    0,
  )
  const trained = memory().current - alone
  t.true(trained >= 12 * weights && trained < 12.2 * weights + 65536 * optimizer.parameters.length, `${trained}`)
  const held: number[] = []
  for (let step = 0; step < 6; step++) {
    await model.trainStep(inputs, null, { lossScale: 0.5 })
    await model.trainStep(inputs, optimizer, { lossScale: 0.5 })
    held.push(memory().current)
  }
  t.deepEqual(new Set(held.slice(1)).size, 1, `${held}`)
  optimizer.dispose()
  model.dropMasters(/./)
  t.is(memory().current, alone)
  model.dispose()
  t.is(memory().current, before)
})

const refusals: [string, ErrorCode, RegExp, () => Promise<unknown>][] = [
  [
    'a state without masters',
    'ERR_WEIGHTS',
    /lacks 'master\.x'.*without f32 master weights/,
    async () => {
      const path = file()
      await new AdamW({ x: leaf([1]) }, { lr: 1, masterWeights: false }).save(path)
      await new AdamW({ x: leaf([1]) }, { lr: 1 }).load(path)
    },
  ],
  [
    'masters where there are none',
    'ERR_WEIGHTS',
    /holds 'master\.x', for which/,
    async () => {
      const path = file()
      await new AdamW({ x: leaf([1]) }, { lr: 1 }).save(path)
      await new AdamW({ x: leaf([1]) }, { lr: 1, masterWeights: false }).load(path)
    },
  ],
  [
    'masters of other weights',
    'ERR_WEIGHTS',
    /'x' do not round to its weights/,
    async () => {
      const path = file()
      await new AdamW({ x: leaf([1]) }, { lr: 1 }).save(path)
      await new AdamW({ x: leaf([2]) }, { lr: 1 }).load(path)
    },
  ],
  [
    'a checkpoint of an f32 run',
    'ERR_WEIGHTS',
    /lacks 'master\./,
    async () => {
      using f32 = await trainee(1)
      const dir = join(folder, 'f32 run')
      await saveCheckpoint(dir, { model: f32.model }, f32.optimizer, {})
      using model = await Module.create('contrastive', small, { dtype: 'bf16' })
      await loadCheckpoint(dir, { model }, new AdamW(model, { lr: 1e-3 }))
    },
  ],
  ['an option that is no boolean', 'ERR_VALUE', /true or false/, async () => new AdamW({ x: leaf([1]) }, bad)],
]
const bad = { lr: 1, masterWeights: 'yes' } as unknown as { lr: number }

for (const [what, code, message, run] of refusals)
  test(`refused: ${what}`, async (t) => {
    await t.throwsAsync(run, { code, message })
  })
