// Loss scaling: scaled steps are the same steps, small gradients of f16 live, overflows change nothing but the scale.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { DeemError, Module, ops, type Tensor, tensor } from 'deem'
import { AdamW, GradScaler, trainLoop, trainStep } from 'deem/train'
import { give, trainable } from '../_harness/gradients.js'
import { generator } from '../_harness/random.js'
import { trainee } from '../_harness/trainee.js'

const folder = mkdtempSync(join(tmpdir(), 'deem-scaler-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

for (const dtype of ['f32', 'f16'] as const)
  test(`${dtype}: a scale that is a power of two changes no bit of a step`, async (t) => {
    const { normal } = generator(3)
    const start = Array.from({ length: 40000 }, normal)
    const [x, y] = [trainable(start, dtype), trainable(start, dtype)]
    const options = { lr: 0.01, weightDecay: 0.1, maxGradNorm: 1 }
    using plain = new AdamW({ x }, options)
    using scaled = new AdamW({ x: y }, options)
    const scaler = new GradScaler({ initScale: 1024 })
    for (let step = 0; step < 3; step++) {
      const g = ops.cast(tensor(Float32Array.from(start, normal), [start.length]), dtype).toFloat32()
      await give(x, g)
      await give(
        y,
        g.map((v) => v * 1024),
      )
      t.is(await scaled.step(1, { scaler }), await plain.step())
      plain.zeroGrad()
      scaled.zeroGrad()
      t.deepEqual(y.toFloat32(), x.toFloat32())
    }
  })

test('f16: gradients below its smallest number are lost without a scale and kept with one', async (t) => {
  using small = await trainee()
  const norm = async (dtype: 'f32' | 'f16', scaler?: GradScaler) => {
    using model = await Module.create(
      'contrastive',
      { feature_dim: 24, vocab_size: 50, embed_dim: 16, pad_token_id: 0 },
      { seed: 1, dtype },
    )
    using optimizer = new AdamW(model, { lr: 1e-3 })
    const inputs = { words: small.inputs.words as Tensor, features: ops.cast(small.inputs.features as Tensor, dtype) }
    const { grad_norm } = await trainStep(model, inputs, optimizer, {
      method: 'loss',
      lossScale: 1e-8,
      ...(scaler && { scaler }),
    })
    return grad_norm as number
  }
  const exact = await norm('f32')
  const kept = await norm('f16', new GradScaler({ initScale: 2 ** 26 }))
  t.true(Math.abs(kept - exact) < 0.01 * exact, `${kept}, not ${exact}`)
  const lost = await norm('f16')
  t.true(lost < 0.5 * exact, `${lost} beside ${exact}: the case is too easy`)
})

test('a step that overflows is left out whole, and the next one is taken at a lower scale', async (t) => {
  const x = trainable([1, 2], 'f16')
  using optimizer = new AdamW({ x }, { lr: 0.1 })
  const scaler = new GradScaler({ initScale: 2 ** 15, growthInterval: 2 })
  for (const bad of [Number.POSITIVE_INFINITY, Number.NaN]) {
    await give(x, [1, bad])
    t.false(Number.isFinite(await optimizer.step(1, { scaler })))
    optimizer.zeroGrad()
    t.deepEqual([...x.toFloat32()], [1, 2])
  }
  t.is(scaler.scale, 2 ** 13)
  // The first step that counts moves by the learning rate whatever the gradient's size: the left out ones were not counted.
  await give(x, [2 ** 13, -(2 ** 13)])
  t.is(await optimizer.step(1, { scaler }), Math.SQRT2)
  optimizer.zeroGrad()
  t.deepEqual([...x.toFloat32()], [...ops.cast(tensor(Float32Array.of(0.9, 2.1), [2]), 'f16').toFloat32()])
  t.is(scaler.scale, 2 ** 13)
  await give(x, [1, 1])
  await optimizer.step(1, { scaler })
  t.is(scaler.scale, 2 ** 14, 'two good steps: it grows')
  optimizer.zeroGrad()
  await give(x, [1, Number.NaN])
  const error = await t.throwsAsync(optimizer.step(), { instanceOf: DeemError })
  t.is(error.code, 'ERR_VALUE')
})

test('accumulated gradients share a scale, which moves with the step alone', async (t) => {
  using small = await trainee()
  const scaler = new GradScaler({ initScale: 2 ** 127 / 2, growthInterval: 1 })
  const half = { method: 'loss', lossScale: 2 ** -100, scaler }
  await trainStep(small.model, small.inputs, null, half)
  t.is(scaler.scale, 2 ** 126)
  const { grad_norm } = await trainStep(small.model, small.inputs, small.optimizer, half)
  t.true(Number.isFinite(grad_norm as number))
  t.is(scaler.scale, 2 ** 126, 'it cannot grow beyond what f32 holds')
})

test('gradients that are finite at no scale are an error', (t) => {
  const scaler = new GradScaler({ initScale: 2 ** -125 })
  scaler.update(Number.NaN)
  const error = t.throws(() => scaler.update(Number.POSITIVE_INFINITY), { instanceOf: DeemError })
  t.is(error.code, 'ERR_VALUE')
})

test('wrong options and states are typed errors', async (t) => {
  for (const options of [
    { initScale: 0 },
    { initScale: Number.NaN },
    { initScale: 1e39 },
    { growthFactor: 0.5 },
    { backoffFactor: 1 },
    { backoffFactor: 0 },
    { growthInterval: 0 },
    { growthInterval: 1.5 },
  ])
    t.is(t.throws(() => new GradScaler(options), { instanceOf: DeemError }).code, 'ERR_VALUE', JSON.stringify(options))
  const scaler = new GradScaler()
  for (const state of [undefined, null, 3, {}, { scale: -1, goodSteps: 0 }, { scale: 2, goodSteps: -1 }])
    t.is(t.throws(() => scaler.load(state), { instanceOf: DeemError }).code, 'ERR_FORMAT', JSON.stringify(state))
  t.deepEqual(scaler.state(), { scale: 65536, goodSteps: 0 })
  using small = await trainee()
  for (const scale of [Number.NaN, -1, Number.POSITIVE_INFINITY])
    await t.throwsAsync(
      trainStep(small.model, small.inputs, small.optimizer, {
        method: 'loss',
        scaler: { scale, update: () => undefined } as unknown as GradScaler,
      }),
      { code: 'ERR_VALUE' },
    )
})

test('a resumed loop goes on with the scale it had', async (t) => {
  const run = async (steps: number, checkpoint: string) => {
    using small = await trainee()
    const scaler = new GradScaler({ growthInterval: 2 })
    await trainLoop({
      steps,
      models: { model: small.model },
      optimizer: small.optimizer,
      scaler,
      batch: (step) => step,
      train: (_, step) =>
        trainStep(small.model, small.inputs, small.optimizer, { method: 'loss', scaler, seed: 1, step }),
      checkpoint: join(folder, checkpoint),
    })
    return { state: scaler.state(), values: small.values() }
  }
  const whole = await run(5, 'whole')
  t.deepEqual(whole.state, { scale: 4 * 65536, goodSteps: 1 })
  await run(3, 'parts')
  t.deepEqual(await run(5, 'parts'), whole)
})
