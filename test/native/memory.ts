// What the allocator counts, limits and gives back. Every test is serial: the counters are those of the process.
import test from 'ava'
import {
  DeemError,
  emptyCache,
  Module,
  memory,
  noGrad,
  ops,
  resetPeakMemory,
  setMemoryLimit,
  type Tensor,
  tensor,
  tidy,
} from 'deem'
import { collect } from '../_harness/memory.js'
import { trainee } from '../_harness/trainee.js'

const MiB = 1 << 20
/** Size classes may round a block up by a quarter. */
const about = (bytes: number, want: number) => bytes >= want && bytes <= 1.25 * want + 64
const full = (bytes: number) => ops.full([bytes / 4], 1, 'f32')
const total = (x: Tensor) => tidy(() => ops.sum(x, [], false).item())
const codeOf = (error: unknown) => (DeemError.isInstance(error) ? error.code : String(error))

// What one test dropped must not be freed during the next.
test.beforeEach(collect)

test.serial('current, peak and reserved follow tensors', (t) => {
  emptyCache()
  const start = memory()
  resetPeakMemory()
  t.is(memory().peak, start.current)
  const a = full(4 * MiB)
  t.true(about(memory().current - start.current, 4 * MiB))
  const b = full(8 * MiB)
  const both = memory()
  t.true(about(both.current - start.current, 12 * MiB))
  t.is(both.peak, both.current)
  t.true(both.reserved >= both.current)
  b.dispose()
  const one = memory()
  t.true(about(one.current - start.current, 4 * MiB))
  t.is(one.peak, both.peak)
  t.is(one.reserved, both.reserved, 'a freed block is kept')
  // Kept blocks serve the next tensor of their size.
  const again = full(8 * MiB)
  t.is(memory().allocations, one.allocations)
  t.is(memory().reserved, one.reserved)
  again.dispose()
  emptyCache()
  t.is(memory().reserved, memory().current)
  a.dispose()
  t.is(memory().current, start.current)
  resetPeakMemory()
  t.is(memory().peak, start.current)
})

test.serial('views and copies of handles count once', (t) => {
  const before = memory().current
  const x = full(MiB)
  const live = memory().current
  const views = [x.detach(), ops.reshape(x, [256, 1024]), ops.slice(x, 0, 5, 10)]
  t.is(memory().current, live)
  x.dispose()
  t.is(memory().current, live, 'a view keeps its storage')
  for (const v of views) v.dispose()
  t.is(memory().current, before)
})

test.serial('a graph holds what backward needs, and backward frees it', async (t) => {
  const x = full(MiB)
  x.requiresGrad = true
  const before = memory().current
  let y: Tensor = x
  for (let i = 0; i < 10; i++) {
    const next = ops.square(y)
    if (y !== x) y.dispose()
    y = next
  }
  const loss = ops.sum(y, [], false)
  y.dispose()
  t.true(memory().current - before > 8 * MiB)
  await loss.backward()
  loss.dispose()
  x.clearGrad()
  t.is(memory().current, before)
  // Without a graph nothing is held.
  resetPeakMemory()
  noGrad(() =>
    tidy(() => {
      let z = x
      for (let i = 0; i < 10; i++) z = ops.square(z)
    }),
  )
  t.is(memory().current, before)
  x.dispose()
})

test.serial('a graph that is dropped frees everything, however long', (t) => {
  const before = memory().current
  const x = tensor([1])
  x.requiresGrad = true
  let y = ops.addScalar(x, 1)
  for (let i = 0; i < 50000; i++) {
    const next = ops.mulScalar(y, 1)
    y.dispose()
    y = next
  }
  y.dispose()
  x.dispose()
  t.is(memory().current, before)
})

test.serial('the limit is an error that says what was asked, used and free, and nothing is lost', async (t) => {
  emptyCache()
  const x = full(MiB)
  using small = await trainee()
  const first = await small.step()
  const before = memory().current
  const limit = before + 2 * MiB
  setMemoryLimit(limit)
  try {
    t.is(memory().limit, limit)
    const error = t.throws(() => full(4 * MiB))
    t.is(codeOf(error), 'ERR_OUT_OF_MEMORY')
    const [asked, of, used, free] = (error?.message.match(/\d+/g) ?? []).map(Number) as [number, number, number, number]
    t.true(about(asked, 4 * MiB), error?.message)
    t.deepEqual([of, used, free], [limit, before, 2 * MiB], error?.message)
    t.is(memory().current, before)
    // What fits still works, again and again.
    for (let i = 0; i < 50; i++) full(MiB).dispose()
    t.true((await small.step()) < first)
    t.is(ops.sum(x, [], false).item(), MiB / 4)
  } finally {
    setMemoryLimit(0)
  }
  const big = full(4 * MiB)
  t.is(big.size, MiB)
  big.dispose()
  x.dispose()
})

test.serial('kept blocks do not stand in the way of the limit', (t) => {
  emptyCache()
  const before = memory()
  for (const x of [MiB, 2 * MiB, 3 * MiB].map(full)) x.dispose()
  t.true(memory().reserved > before.reserved + 5 * MiB)
  setMemoryLimit(before.reserved + 5 * MiB)
  try {
    t.true(memory().reserved <= before.reserved + 5 * MiB, 'setting it gives kept blocks back')
    full(2 * MiB).dispose()
    full(4 * MiB).dispose()
    t.true(memory().reserved <= before.reserved + 5 * MiB)
  } finally {
    setMemoryLimit(0)
  }
})

test.serial('a kept block serves what needs half of it or more', (t) => {
  emptyCache()
  const before = memory()
  full(8 * MiB).dispose()
  const kept = memory()
  const x = full(5 * MiB)
  t.is(memory().allocations, kept.allocations)
  t.is(memory().reserved, kept.reserved)
  t.is(memory().current, before.current + 5 * MiB)
  const other = full(5 * MiB)
  t.is(memory().allocations, kept.allocations + 1, 'it serves one at a time')
  t.is(memory().reserved, kept.reserved + 5 * MiB)
  t.deepEqual([total(x), total(other)], [1.25 * MiB, 1.25 * MiB])
  x.dispose()
  other.dispose()
  t.is(memory().current, before.current)
  // 8 and 5 MiB are kept: the smallest that fits is taken, so that the next finds the other.
  const both = memory()
  const pair = [full(4 * MiB), full(6 * MiB)]
  t.is(memory().allocations, both.allocations)
  const less = full(3 * MiB)
  t.is(memory().allocations, both.allocations + 1)
  for (const y of [...pair, less]) y.dispose()
  emptyCache()
  const third = memory()
  full(9 * MiB).dispose()
  full(3 * MiB).dispose()
  t.is(memory().allocations, third.allocations + 2, 'of a third of it the rest would be wasted')
  emptyCache()
  t.is(memory().reserved, memory().current)
})

test.serial('a kept block grows where only a larger one would do', (t) => {
  emptyCache()
  const before = memory()
  full(4 * MiB).dispose()
  for (const [size, reserved, takes] of [
    [6, 6, 1],
    [9, 9, 1],
    [18, 18, 1],
    [10, 18, 0],
    [48, 68, 1],
  ] as const) {
    const { allocations } = memory()
    const x = full(size * MiB)
    t.is(memory().allocations, allocations + takes, `${size} MiB`)
    t.is(total(x), (size * MiB) / 4)
    x.dispose()
    t.true(about(memory().reserved - before.reserved, reserved * MiB), `${size} MiB`)
  }
  emptyCache()
  t.is(memory().current, before.current)
})

test.serial('a block is not lent below a limit, nor grown beyond it', (t) => {
  emptyCache()
  const before = memory().current
  const live = full(8 * MiB)
  setMemoryLimit(before + 6 * MiB)
  try {
    live.dispose()
    const x = full(5 * MiB)
    t.is(memory().current, before + 5 * MiB)
    t.is(codeOf(t.throws(() => full(5 * MiB))), 'ERR_OUT_OF_MEMORY')
    x.dispose()
    t.is(codeOf(t.throws(() => full(7 * MiB))), 'ERR_OUT_OF_MEMORY')
    full(6 * MiB).dispose()
    t.is(memory().current, before)
    t.true(memory().reserved <= before + 6 * MiB)
    setMemoryLimit(before + 10 * MiB)
    full(8 * MiB).dispose()
    for (const y of [full(5 * MiB), full(5 * MiB)]) y.dispose()
  } finally {
    setMemoryLimit(0)
  }
})

test.serial('a limit below what is live refuses all that is new and keeps all that is old', (t) => {
  const x = tensor([1, 2, 3])
  setMemoryLimit(1)
  try {
    const error = t.throws(() => tensor([1]))
    t.is(codeOf(error), 'ERR_OUT_OF_MEMORY')
    t.regex(error?.message ?? '', /and 0 are free/)
    t.deepEqual([...x.toFloat32()], [1, 2, 3])
    t.is(codeOf(t.throws(() => ops.neg(x))), 'ERR_OUT_OF_MEMORY')
    t.deepEqual(ops.reshape(x, [3, 1]).shape, [3, 1], 'a view needs nothing')
  } finally {
    setMemoryLimit(0)
  }
  t.deepEqual([...ops.neg(x).toFloat32()], [-1, -2, -3])
})

test.serial('a training step that runs out of memory anywhere changes nothing', async (t) => {
  using one = await trainee(3, 64)
  using other = await trainee(3, 64)
  t.is(await one.step(), await other.step())
  const values = one.values()
  let refused = 0
  let passed = 0
  // From hardly anything to enough, so that it fails at every stage.
  for (let spare = 1024; passed === 0; spare *= 1.5) {
    emptyCache()
    const before = memory().current
    setMemoryLimit(before + Math.round(spare))
    const result = await one.step().then(
      () => 'passed',
      (error: unknown) => codeOf(error),
    )
    setMemoryLimit(0)
    if (result === 'passed') {
      passed++
      break
    }
    refused++
    t.is(result, 'ERR_OUT_OF_MEMORY')
    t.deepEqual(one.values(), values, `parameters after ${refused} refusals`)
    for (const { name } of one.model.parameters()) t.is(one.model.gradient(name), null, name)
    t.is(memory().current, before, `${spare} spare`)
    if (refused > 60) return t.fail('it never passes')
  }
  t.true(refused > 3, `${refused} refusals`)
  await other.step()
  t.deepEqual(one.values(), other.values(), 'the step that passed')
  t.is(await one.step(), await other.step())
})

test.serial('a model that does not fit is refused and leaves nothing', async (t) => {
  emptyCache()
  const before = memory().current
  setMemoryLimit(before + MiB)
  try {
    const config = { feature_dim: 1000, vocab_size: 1000, embed_dim: 1000, pad_token_id: 0 }
    const error = await t.throwsAsync(Module.create('contrastive', config))
    t.is(codeOf(error), 'ERR_OUT_OF_MEMORY')
  } finally {
    setMemoryLimit(0)
  }
  t.is(memory().current, before)
})

test.serial('limits that are none', (t) => {
  t.is(codeOf(t.throws(() => setMemoryLimit(-1))), 'ERR_VALUE')
  t.is(codeOf(t.throws(() => setMemoryLimit(0.5))), 'ERR_VALUE')
  t.is(codeOf(t.throws(() => setMemoryLimit(Number.NaN))), 'ERR_VALUE')
  t.is(codeOf(t.throws(() => setMemoryLimit('1' as unknown as number))), 'ERR_VALUE')
  t.is(memory().limit, 0)
})

test.serial('handles that are dropped are finalised, graphs and models too', async (t) => {
  const before = memory().current
  await (async () => {
    const kept = Array.from({ length: 40 }, () => full(MiB))
    const x = full(MiB)
    x.requiresGrad = true
    ops.sum(ops.square(x), [], false)
    ops.square(ops.square(x))
    t.true(memory().current > before + kept.length * MiB)
    const { step } = await trainee()
    await step()
  })()
  await collect()
  t.is(memory().current, before)
})

test.serial('the garbage collector is told how much handles hold, so that dropped ones go in time', async (t) => {
  emptyCache()
  const before = memory().current
  resetPeakMemory()
  for (let i = 0; i < 120; i++) {
    full(16 * MiB)
    await new Promise((done) => setImmediate(done))
  }
  const peak = memory().peak - before
  t.true(peak < 640 * MiB, `120 dropped tensors of 16 MiB: peak ${peak / MiB} MiB`)
  await collect()
  t.is(memory().current, before)
  emptyCache()
})

test.serial('2,000 small operations do not grow', async (t) => {
  const a = tensor(Float32Array.from({ length: 256 }, Math.sin), [16, 16])
  const work = () =>
    tidy(() => {
      const b = ops.matmul(a, a, false, true)
      const c = ops.softmax(
        ops.add(b, ops.layerNorm(b, ops.slice(ops.full([16], 1, 'f32'), 0, 0, 16), ops.full([16], 0, 'f32'), 1e-5)),
      )
      return ops.sum(c, [], false).item()
    })
  work()
  const before = memory()
  const resident = process.memoryUsage().rss
  for (let i = 0; i < 330; i++) work()
  await collect()
  const after = memory()
  t.is(after.current, before.current)
  t.is(after.allocations, before.allocations, 'every block is one that was kept')
  t.is(after.reserved, before.reserved)
  t.true(process.memoryUsage().rss - resident < 32 * MiB, 'resident memory')
})

test.serial('300 training steps and 300 calls do not grow', async (t) => {
  using small = await trainee()
  const call = async () => {
    for (const y of Object.values(await small.model.call('loss', small.inputs))) y.dispose()
  }
  for (let i = 0; i < 3; i++) {
    await small.step()
    await call()
  }
  await collect()
  const before = memory()
  const resident = process.memoryUsage().rss
  for (let i = 0; i < 300; i++) {
    await small.step()
    await call()
  }
  await collect()
  t.is(memory().current, before.current)
  t.is(memory().reserved, before.reserved)
  t.true(process.memoryUsage().rss - resident < 32 * MiB, 'resident memory')
})

test.serial('disposing models and optimizers gives back what they hold, also while they work', async (t) => {
  const before = memory().current
  const small = await trainee()
  const steps = [small.step(), small.step()]
  small[Symbol.dispose]()
  small[Symbol.dispose]()
  t.deepEqual((await Promise.all(steps)).map(Number.isFinite), [true, true])
  t.is(codeOf(t.throws(() => small.model.parameters())), 'ERR_DISPOSED')
  t.is(codeOf(await t.throwsAsync(small.step())), 'ERR_DISPOSED')
  t.is(codeOf(await t.throwsAsync(small.optimizer.step())), 'ERR_DISPOSED')
  t.is(memory().current, before)
})
