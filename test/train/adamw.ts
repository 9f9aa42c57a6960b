import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { backward, DeemError, ops, readTensors, setThreads, type Tensor, tensor, threads } from 'deem'
import { AdamW } from 'deem/train'
import { compare, generator } from '../_harness/op.js'

const leaf = (values: ArrayLike<number>) => {
  const x = tensor(Float32Array.from(values), [values.length])
  x.requiresGrad = true
  return x
}
/** Leaves `gradient` in x.grad, whatever its dtype. */
const give = async (x: Tensor, gradient: ArrayLike<number>) => {
  const y = ops.mul(ops.cast(x, 'f32'), tensor(Float32Array.from(gradient), [gradient.length]))
  await backward([y], [ops.full(y.shape, 1, 'f32')])
}

interface Rule {
  lr: number
  decay: number
  clip: number
  step: number
}
const beta1 = 0.9
const beta2 = 0.995
const eps = 1e-6
function update(p: number[], m: number[], v: number[], g: number[], { lr, decay, clip, step }: Rule): void {
  for (let i = 0; i < p.length; i++) {
    const gradient = (g[i] as number) * clip
    m[i] = beta1 * (m[i] as number) + (1 - beta1) * gradient
    v[i] = beta2 * (v[i] as number) + (1 - beta2) * gradient ** 2
    const size = Math.sqrt((v[i] as number) / (1 - beta2 ** step)) + eps
    p[i] = (p[i] as number) * (1 - lr * decay) - (lr * (m[i] as number)) / (1 - beta1 ** step) / size
  }
}

test('AdamW: follows the rule in float64, with clipping, decay by group and a schedule', async (t) => {
  const { normal } = generator(1)
  const sizes = [1, 70000, 33]
  const values = sizes.map((n) => Array.from({ length: n }, () => Math.fround(normal())))
  const x = values.map(leaf)
  const m = values.map((v) => v.map(() => 0))
  const v = values.map((row) => row.map(() => 0))
  const named = Object.fromEntries(x.map((p, i) => [`p${i}`, p]))
  const optimizer = new AdamW(named, {
    lr: 0.01,
    betas: [beta1, beta2],
    eps,
    weightDecay: 0.05,
    maxGradNorm: 1,
    groups: [{ match: 'p2', lr: 0.1, weightDecay: 0 }],
  })
  for (let step = 1; step <= 4; step++) {
    const g = sizes.map((n) => Array.from({ length: n }, () => Math.fround((step === 3 ? 1e-4 : 1) * normal())))
    for (const [i, p] of x.entries()) await give(p, g[i] as number[])
    const norm = Math.sqrt(g.flat().reduce((a, k) => a + k * k, 0))
    const factor = step / 4
    const got = await optimizer.step(factor)
    optimizer.zeroGrad()
    t.true(Math.abs(got - norm) < 1e-6 * norm, `norm ${got}, not ${norm}`)
    const clip = Math.min(1, 1 / (norm + 1e-6))
    for (const i of sizes.keys()) {
      const group = i === 2 ? { lr: 0.1 * factor, decay: 0 } : { lr: 0.01 * factor, decay: 0.05 }
      update(values[i] as number[], m[i] as number[], v[i] as number[], g[i] as number[], { ...group, clip, step })
      compare(t, `p${i} after ${step}`, (x[i] as Tensor).toFloat32(), values[i] as number[], 2e-6)
    }
  }
})

test('AdamW: a parameter without a gradient stays, and so does its step count', async (t) => {
  const [a, b, alone] = [leaf([1, 2]), leaf([3]), leaf([3])]
  const both = new AdamW({ a, b }, { lr: 0.1, weightDecay: 0.1 })
  const single = new AdamW({ alone }, { lr: 0.1, weightDecay: 0.1 })
  await give(a, [1, -1])
  await both.step()
  both.zeroGrad()
  t.deepEqual([...b.toFloat32()], [3])
  await give(b, [0.5])
  await give(alone, [0.5])
  await both.step()
  await single.step()
  t.deepEqual(b.toFloat32(), alone.toFloat32())
  both.zeroGrad()
  t.is(b.grad, null)
  t.is(await both.step(), 0)
})

test('AdamW: a gradient that is not finite is named and changes nothing', async (t) => {
  const [good, bad] = [leaf([1, 2]), leaf([3])]
  const optimizer = new AdamW({ good, bad }, { lr: 0.1 })
  await give(good, [1, 1])
  await give(bad, [Number.POSITIVE_INFINITY])
  const error = await t.throwsAsync(optimizer.step(), { message: /'bad'/ })
  t.is((error as DeemError).code, 'ERR_VALUE')
  t.true(DeemError.isInstance(error))
  t.deepEqual([...good.toFloat32(), ...bad.toFloat32()], [1, 2, 3])
})

test('AdamW: the same bits at any number of threads', async (t) => {
  const before = threads()
  const run = async (n: number) => {
    setThreads(n)
    const { normal } = generator(3)
    const x = [100000, 3, 50000].map((size) => leaf(Array.from({ length: size }, normal)))
    const optimizer = new AdamW(
      { a: x[0] as Tensor, b: x[1] as Tensor, c: x[2] as Tensor },
      { lr: 0.01, maxGradNorm: 1 },
    )
    const norms: number[] = []
    for (let step = 0; step < 2; step++) {
      for (const p of x) await give(p, Array.from({ length: p.size }, normal))
      norms.push(await optimizer.step())
      optimizer.zeroGrad()
    }
    return { norms, values: x.map((p) => p.toFloat32()) }
  }
  try {
    const one = await run(1)
    for (const n of [2, 5]) t.deepEqual(await run(n), one)
  } finally {
    setThreads(before)
  }
})

test('AdamW: bf16 parameters gather small updates in an f32 copy, which a resumed run continues exactly', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'deem-adamw-'))
  const make = (values: ArrayLike<number>) => {
    const x = ops.cast(tensor(Float32Array.from(values), [3]), 'bf16')
    x.requiresGrad = true
    return x
  }
  const options = { lr: 1e-3, eps: 1e-8 }
  try {
    const p = make([1, 1, 1])
    const optimizer = new AdamW({ p }, options)
    const train = async (x: Tensor, o: AdamW) => {
      await give(x, [1, 1, 1])
      await o.step()
      o.zeroGrad()
    }
    await train(p, optimizer)
    t.deepEqual([...p.toFloat32()], [1, 1, 1], 'one step is less than half a last place')
    await optimizer.save(join(folder, 'state.safetensors'))
    t.true(Object.keys((await readTensors(join(folder, 'state.safetensors'))).tensors).includes('master.p'))

    const resumed = make(p.toFloat32())
    const again = new AdamW({ p: resumed }, options)
    await again.load(join(folder, 'state.safetensors'))
    for (let step = 0; step < 5; step++) {
      await train(p, optimizer)
      await train(resumed, again)
    }
    t.deepEqual(resumed.toFloat32(), p.toFloat32())
    compare(t, 'six small steps', p.toFloat32(), [0.994, 0.994, 0.994], 2 ** -8)
    t.true((p.toFloat32()[0] as number) < 1)
  } finally {
    await rm(folder, { recursive: true })
  }
})

for (const [what, code, make] of [
  ['a beta of 1', 'ERR_VALUE', () => new AdamW({ a: leaf([1]) }, { lr: 1, betas: [1, 0.9] })],
  ['a negative learning rate', 'ERR_VALUE', () => new AdamW({ a: leaf([1]) }, { lr: -1 })],
  ['a negative eps', 'ERR_VALUE', () => new AdamW({ a: leaf([1]) }, { lr: 1, eps: -1 })],
  ['integers', 'ERR_DTYPE', () => new AdamW({ a: ops.full([1], 1, 'i64') }, { lr: 1 })],
  ['nothing', 'ERR_VALUE', () => new AdamW({}, { lr: 1 })],
  ['an unknown option', 'ERR_CONFIG', () => new AdamW({ a: leaf([1]) }, { lr: 1, bettas: [0.9, 0.9] } as never)],
] as const)
  test(`AdamW refuses ${what}`, (t) => {
    t.is((t.throws(make) as DeemError).code, code)
  })

test('AdamW refuses one tensor under two names', (t) => {
  const a = leaf([1])
  t.is((t.throws(() => new AdamW({ a, b: a }, { lr: 1 })) as DeemError).code, 'ERR_VALUE')
})

test('AdamW refuses a state of other parameters', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'deem-adamw-'))
  try {
    const file = join(folder, 'state.safetensors')
    await new AdamW({ a: leaf([1, 2]) }, { lr: 1 }).save(file)
    for (const other of [{ b: leaf([1, 2]) }, { a: leaf([1]) }, { a: leaf([1, 2]), b: leaf([1]) }]) {
      const error = await t.throwsAsync(new AdamW(other, { lr: 1 }).load(file))
      t.is((error as DeemError).code, 'ERR_WEIGHTS')
    }
  } finally {
    await rm(folder, { recursive: true })
  }
})
