// Aborts: a call stops within one operation, rejects with the signal's reason, gives its memory back and changes nothing.
// Every test is serial: they count memory and compare times.
import { getEventListeners } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import {
  backward,
  type CallOptions,
  Llama,
  Module,
  memory,
  ops,
  output,
  readTensors,
  type Tensor,
  tensor,
  writeTensors,
} from 'deem'
import { AdamW, trainStep } from 'deem/train'
import { collect } from '../_harness/memory.js'
import { normals, whole } from '../_harness/model.js'
import { nano, prompts } from '../_harness/nano.js'
import { trainee } from '../_harness/trainee.js'

test.beforeEach(collect)
const folder = mkdtempSync(join(tmpdir(), 'deem-abort-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

const reason = new Error('enough')

/** Starts `run`, aborts it after `delay` ms (-1: at once), and says how it ended and after how long. */
async function abortAfter(delay: number, run: (options: { signal: AbortSignal }) => Promise<unknown>) {
  const stop = new AbortController()
  const start = performance.now()
  const running = run({ signal: stop.signal }).then(
    () => 'finished',
    (error: unknown) => error,
  )
  if (delay >= 0) await sleep(delay)
  stop.abort(reason)
  const result = await running
  return { result, took: performance.now() - start, listeners: getEventListeners(stop.signal, 'abort').length }
}

/** Something that takes a few hundred milliseconds, in many operations. */
async function slow(): Promise<{ model: Llama; run: (options?: CallOptions) => Promise<Tensor> }> {
  const model = await Llama.build({
    hidden_size: 128,
    num_attention_heads: 4,
    intermediate_size: 256,
    num_hidden_layers: 32,
    vocab_size: 16,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 512,
    image_embed_dim: 8,
    cross_attention_frequency: 100,
    spatial_shapes: [2],
    mmfs_heads: 2,
  })
  const embeds = normals([2, 300, 128], 1)
  const run = async (options: CallOptions = {}) =>
    output(await model.call('forward', { embeds }, {}, { grad: false, ...options }), 'last_hidden')
  return { model, run }
}

test.serial('before the start: rejects with the reason and does nothing at all', async (t) => {
  using small = await trainee()
  const file = join(folder, 'never.safetensors')
  const kept = join(folder, 'kept.safetensors')
  await small.model.save(kept)
  const y = ops.square(tensor([1]))
  const x = tensor([3])
  x.requiresGrad = true
  const loss = ops.square(x)
  const values = small.values()
  const { current, allocations } = memory()
  for (const why of [reason, 'a string', 5, { any: 'thing' }]) {
    const signal = AbortSignal.abort(why)
    const calls: Record<string, () => Promise<unknown>> = {
      create: () => Module.create('contrastive', { nonsense: true }, { signal }),
      call: () => small.model.call('no such method', small.inputs, {}, { signal }),
      load: () => small.model.load('no such file', { signal }),
      save: () => small.model.save(file, { signal }),
      trainStep: () => small.step({ signal }),
      step: () => small.optimizer.step(1, { signal }),
      'optimizer.save': () => small.optimizer.save(file, { signal }),
      'optimizer.load': () => small.optimizer.load('no such file', { signal }),
      backward: () => backward([loss], undefined, { signal }),
      readTensors: () => readTensors('no such file', { signal }),
      writeTensors: () => writeTensors(file, { y }, { signal }),
    }
    for (const [name, call] of Object.entries(calls)) {
      const error = await call().then(
        () => 'finished',
        (e: unknown) => e,
      )
      t.is(error, why, name)
    }
  }
  t.false(existsSync(file))
  t.is(memory().current, current)
  t.is(memory().allocations, allocations)
  t.deepEqual(small.values(), values)
  await loss.backward()
  t.is(x.grad?.item(), 6)
})

test.serial('what AbortSignal itself gives as reason comes through', async (t) => {
  const { model, run } = await slow()
  const nameOf = (running: Promise<unknown>) => running.catch((error: unknown) => (error as Error).name)
  t.is(await nameOf(run({ signal: AbortSignal.timeout(5) })), 'TimeoutError')
  const stop = new AbortController()
  const running = run({ signal: stop.signal })
  stop.abort()
  t.is(await nameOf(running), 'AbortError')
  model.dispose()
})

test.serial('a model call stops soon, gives its memory back, and the model goes on with the same bits', async (t) => {
  const { model, run } = await slow()
  await run()
  const start = performance.now()
  using want = await run()
  const full = performance.now() - start
  await collect()
  const before = memory().current
  let aborted = 0
  for (const delay of [-1, 0, 0.1 * full, 0.3 * full, 0.5 * full]) {
    // The quickest of three, because other programs may hold this one up.
    let quickest = Number.POSITIVE_INFINITY
    for (let i = 0; i < 3; i++) {
      const { result, took, listeners } = await abortAfter(delay, run)
      t.is(listeners, 0)
      if (result !== reason) continue
      aborted++
      quickest = Math.min(quickest, took)
      t.is(memory().current, before, `aborted after ${delay} ms`)
    }
    if (Number.isFinite(quickest))
      t.true(quickest < delay + 0.4 * full, `aborted after ${delay} ms of ${full}, took ${quickest}`)
  }
  t.true(aborted >= 3, `${aborted} aborted`)
  using got = await run()
  t.deepEqual(got.toFloat32(), want.toFloat32())
  model.dispose()
})

test.serial('a model call with a graph leaves none behind', async (t) => {
  const { model } = await slow()
  const embeds = normals([1, 100, 128], 1)
  embeds.requiresGrad = true
  await collect()
  const before = memory().current
  for (const delay of [-1, 2, 10]) {
    const { result } = await abortAfter(delay, async (options) => {
      const y = await model.call('forward', { embeds }, {}, options)
      for (const v of Object.values(y)) v.dispose()
    })
    t.true(result === reason || result === 'finished')
    t.is(memory().current, before)
    t.is(embeds.grad, null)
  }
  model.dispose()
})

test.serial('backward through a long chain stops, and its graph goes with its tensors', async (t) => {
  const x = ops.full([64, 1024], 1, 'f32')
  x.requiresGrad = true
  const chain = () => {
    let y = ops.mulScalar(x, 1)
    for (let i = 0; i < 1500; i++) {
      const next = ops.mulScalar(y, 1.0001)
      y.dispose()
      y = next
    }
    const loss = ops.sum(y, [], false)
    y.dispose()
    return loss
  }
  const before = memory().current
  let aborted = 0
  for (const delay of [-1, 0, 1, 3]) {
    const loss = chain()
    const { result } = await abortAfter(delay, (options) => backward([loss], undefined, options))
    if (result === reason) {
      aborted++
      t.is(x.grad, null, 'the leaf is at the far end')
    }
    loss.dispose()
    x.clearGrad()
    t.is(memory().current, before)
  }
  t.true(aborted > 0)
  const loss = chain()
  await loss.backward()
  t.true(Math.abs((x.grad?.toFloat32()[0] as number) - 1.0001 ** 1500) < 1e-3)
})

test.serial('a training step that is aborted anywhere changes nothing', async (t) => {
  const { model, inputs } = await nano()
  const optimizer = new AdamW(model, { lr: 1e-3, maxGradNorm: 1 })
  const { model: twin } = await nano()
  const other = new AdamW(twin, { lr: 1e-3, maxGradNorm: 1 })
  // Of 1326 tensors every seventh, to save time.
  const some = model.parameters().filter((_, i) => i % 7 === 0)
  const values = (m: Module) =>
    some.map(({ name }) => {
      using p = m.parameter(name)
      return ops.norm(p)
    })
  t.deepEqual(await trainStep(model, inputs, optimizer), await trainStep(twin, inputs, other))
  const start = performance.now()
  t.deepEqual(await trainStep(model, inputs, optimizer), await trainStep(twin, inputs, other))
  const full = (performance.now() - start) / 2
  await collect()
  let [aborted, finished] = [0, 0]
  for (let k = 0; k < 8; k++) {
    const { current } = memory()
    const before = values(model)
    const delay = k === 0 ? -1 : (full * k) / 7
    const { result } = await abortAfter(delay, (options) => trainStep(model, inputs, optimizer, options))
    if (result === reason) {
      aborted++
      t.deepEqual(values(model), before, `aborted after ${delay} ms`)
      t.true(some.every(({ name }) => model.gradient(name) === null))
    } else {
      t.is(result, 'finished')
      finished++
      await trainStep(twin, inputs, other)
    }
    await collect()
    t.is(memory().current, current, `after ${delay} ms of ${full}`)
  }
  t.true(aborted >= 3, `${aborted} aborted, ${finished} finished`)
  t.deepEqual(await trainStep(model, inputs, optimizer), await trainStep(twin, inputs, other))
  t.deepEqual(values(model), values(twin))
})

test.serial('generation that is aborted starts afresh', async (t) => {
  const { model, inputs: batch } = await nano()
  const inputs = prompts(batch)
  const text = async (options: CallOptions = {}) => {
    const { ids } = await model.generateText(inputs, { maxNewTokens: 60, minLength: 100, ...options })
    return tensor(ids)
  }
  const which = whole([1], [1])
  const paint = (options: CallOptions = {}) => model.paint({ ...inputs, which }, { steps: 8, seed: 3, ...options })
  for (const [name, run] of Object.entries({ text, paint })) {
    const start = performance.now()
    using want = await run()
    const full = performance.now() - start
    await collect()
    const before = memory().current
    let aborted = 0
    for (const part of [-1, 0.2, 0.5, 0.8]) {
      const { result } = await abortAfter(part < 0 ? -1 : part * full, async (options) =>
        (await run(options)).dispose(),
      )
      if (result === reason) aborted++
      t.is(memory().current, before, `${name} aborted after ${part} of ${full} ms`)
    }
    t.true(aborted > 0, name)
    using got = await run()
    t.deepEqual(got.read(), want.read(), name)
  }
  model.dispose()
})

test.serial('a task that waits is aborted alone; what runs before and after it is not', async (t) => {
  const { model, run } = await slow()
  using want = await run()
  const stop = new AbortController()
  const first = run()
  const second = run({ signal: stop.signal })
  const third = run()
  stop.abort(reason)
  t.is(await second.catch((e: unknown) => e), reason)
  for (const y of await Promise.all([first, third])) {
    t.deepEqual(y.toFloat32(), want.toFloat32())
    y.dispose()
  }
  model.dispose()
})

test.serial('one signal stops all its calls; after the end it does nothing', async (t) => {
  using small = await trainee()
  const { model, run } = await slow()
  const stop = new AbortController()
  const done = await small.step({ signal: stop.signal })
  const all = [run({ signal: stop.signal }), small.step({ signal: stop.signal }), run({ signal: stop.signal })]
  t.is(getEventListeners(stop.signal, 'abort').length, 3)
  stop.abort(reason)
  for (const result of await Promise.allSettled(all)) t.is(result.status === 'rejected' && result.reason, reason)
  t.is(getEventListeners(stop.signal, 'abort').length, 0)
  t.true((await small.step()) < done)
  model.dispose()
})

test.serial('building a model that is aborted leaves nothing', async (t) => {
  const before = memory().current
  const config = { feature_dim: 2000, vocab_size: 4000, embed_dim: 1000, pad_token_id: 0 }
  for (const delay of [-1, 0, 5]) {
    const { result } = await abortAfter(delay, async (options) =>
      (await Module.create('contrastive', config, options)).dispose(),
    )
    t.true(result === reason || result === 'finished', String(result))
    t.is(memory().current, before)
  }
})

test.serial('an error of the call itself is not hidden by a signal that is not aborted', async (t) => {
  using small = await trainee()
  const error = await t.throwsAsync(small.model.call('nothing', {}, {}, { signal: new AbortController().signal }))
  t.is((error as { code?: string }).code, 'ERR_VALUE')
})

test.serial('200 aborts in a row do not grow memory', async (t) => {
  using small = await trainee(1, 64)
  const { model, run } = await slow()
  const want = await small.step()
  const rounds = async (n: number) => {
    let aborted = 0
    for (let i = 0; i < n; i++) {
      const { result } = await abortAfter(i % 4 === 3 ? 1 : -1, i % 2 ? run : small.step)
      if (result === reason) aborted++
    }
    return aborted
  }
  await rounds(20)
  await collect()
  const before = memory()
  const resident = process.memoryUsage().rss
  const aborted = await rounds(200)
  await collect()
  t.true(aborted > 100, `${aborted} of 200 aborted`)
  t.is(memory().current, before.current)
  t.true(memory().reserved - before.reserved <= 4 << 20, `${memory().reserved - before.reserved} bytes more reserved`)
  t.true(process.memoryUsage().rss - resident < 32 << 20, 'resident memory')
  t.true((await small.step()) <= want)
  model.dispose()
})
