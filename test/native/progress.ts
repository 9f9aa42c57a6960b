// How far long calls are: told in order, not too often, never after the end, and whatever the listener does.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import { type CallOptions, type Module, memory, readTensors, type Tensor, tensor, writeTensors } from 'deem'
import { AdamW } from 'deem/train'
import { collect } from '../_harness/memory.js'
import { whole } from '../_harness/model.js'
import { nano, nanoWeights, prompts } from '../_harness/nano.js'
import { type Sampler, sampler } from '../_harness/sampler.js'

const folder = mkdtempSync(join(tmpdir(), 'deem-progress-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

/** Steps of the sampler that take about so many milliseconds. */
async function stepsOf(slow: Sampler, milliseconds: number): Promise<number> {
  await slow.run(3)
  const start = performance.now()
  await slow.run(10)
  return Math.min(1000, Math.ceil((10 * milliseconds) / (performance.now() - start)))
}

/** Writes down what is told. */
function listener() {
  const told: { done: number; total: number; at: number }[] = []
  const onProgress = (done: number, total: number) => {
    told.push({ done, total, at: performance.now() })
  }
  return { told, onProgress }
}

function inOrder(t: ExecutionContext, told: { done: number; total: number }[], total: number, name: string): void {
  for (const [i, step] of told.entries()) {
    t.is(step.total, total, name)
    t.true(step.done > (told[i - 1]?.done ?? 0) && step.done <= total, `${name}: ${JSON.stringify(told)}`)
  }
}

// Serial: a synchronous call of another test would hold up the event loop that tells.
test.serial(
  'a long call tells how far it is, in order, at most 20 times a second, and never after its end',
  async (t) => {
    using slow = await sampler()
    const steps = await stepsOf(slow, 600)
    const { told, onProgress } = listener()
    const start = performance.now()
    await slow.run(steps, { onProgress })
    const took = performance.now() - start
    const count = told.length
    t.true(count >= 2 && count <= took / 50 + 1, `${count} times in ${took} ms`)
    inOrder(t, told, steps, 'sample')
    await sleep(120)
    t.is(told.length, count)
  },
)

test.serial('every call that counts reaches its total', async (t) => {
  // Too quick to be asked in time, these are watched by the handle itself.
  const { model, inputs } = await nano()
  const batch = { ...prompts(inputs), which: whole([1], [1]) }
  const optimizer = new AdamW(model, { lr: 1e-3 })
  const file = (name: string) => join(folder, `${name}.safetensors`)
  await writeTensors(file('few'), { a: tensor([1]), b: tensor([2]), c: tensor([3]) })
  const painted = (await model.open('picture', batch, { steps: 4 })) as Module
  const parameters = model.parameters().length
  const trained = optimizer.parameters.length
  for (const [name, total, start] of [
    ['advance', 4, () => painted.handle.call('advance', {}, '{}', false, 0, 0, false)],
    ['save', parameters, () => model.handle.save(file('model'), '')],
    ['load', parameters, () => model.handle.load(nanoWeights, '', true)],
    ['optimizer.save', 3 * trained, () => optimizer.handle.save(file('optimizer'))],
    ['optimizer.load', trained, () => optimizer.handle.load(file('optimizer'))],
  ] as const) {
    const task = start()
    await task.promise
    t.deepEqual(task.progress(), [total, total], name)
  }
  for (const x of [model, optimizer, ...Object.values(inputs)]) x?.dispose()
})

test.serial('the public calls pass it on', async (t) => {
  const { model, inputs } = await nano()
  const batch = prompts(inputs)
  const calls: Record<string, [number, (options: CallOptions) => Promise<unknown>]> = {
    generateText: [210, (options) => model.generateText(batch, { maxNewTokens: 210, minLength: 220, ...options })],
    paint: [40, (options) => model.paint({ ...batch, which: whole([0, 1, 2, 3], [4]) }, { steps: 40, ...options })],
    reconstruct: [
      40,
      (options) => model.reconstruct({ image_tensors: inputs.image_tensors as Tensor }, { steps: 40, ...options }),
    ],
  }
  for (const [name, [total, run]] of Object.entries(calls)) {
    const { told, onProgress } = listener()
    const start = performance.now()
    await run({ onProgress })
    const took = performance.now() - start
    inOrder(t, told, total, name)
    if (took > 150) t.true(told.length > 0, `${name}: silent for ${took} ms`)
  }
})

test.serial('a call that does not count says nothing', async (t) => {
  const { onProgress, told } = listener()
  using slow = await sampler({ onProgress })
  t.true(slow.model.parameters().length > 0)
  t.deepEqual(told, [])
})

test.serial('what a listener throws ends the call, which works again afterwards', async (t) => {
  using slow = await sampler()
  const steps = await stepsOf(slow, 1500)
  await collect()
  const before = memory().current
  const failure = new Error('the listener fails')
  let told = 0
  const start = performance.now()
  const error = await slow
    .run(steps, {
      onProgress: () => {
        told++
        throw failure
      },
    })
    .catch((e: unknown) => e)
  const took = performance.now() - start
  t.is(error, failure)
  t.is(told, 1)
  t.true(took < 1000, `it went on for ${took} ms`)
  await collect()
  t.is(memory().current, before)
  await t.notThrowsAsync(slow.run(2))
})

test.serial('a listener may abort the call', async (t) => {
  using slow = await sampler()
  const steps = await stepsOf(slow, 1500)
  const stop = new AbortController()
  const { told, onProgress } = listener()
  const error = await slow
    .run(steps, {
      signal: stop.signal,
      onProgress: (done, total) => {
        onProgress(done, total)
        stop.abort('enough')
      },
    })
    .catch((e: unknown) => e)
  t.is(error, 'enough')
  t.is(told.length, 1)
  await sleep(120)
  t.is(told.length, 1)
})

test.serial('many calls at once, each told its own', async (t) => {
  using slow = await sampler()
  const steps = await stepsOf(slow, 400)
  const listeners = [steps, steps + 1, steps + 2].map((n) => ({ n, ...listener() }))
  await Promise.all(listeners.map(({ n, onProgress }) => slow.run(n, { onProgress })))
  for (const { n, told } of listeners) inOrder(t, told, n, `${n} steps`)
  const [first, , last] = listeners
  t.true((last?.told[0]?.at ?? 0) > (first?.told.at(-1)?.at ?? Number.POSITIVE_INFINITY), 'one after the other')
})

const script = fileURLToPath(new URL('../_harness/sampler.js', import.meta.url))

test.serial('a listener does not keep the process, and an unfinished call ends with it', (t) => {
  for (const [how, code] of [
    ['finish', 0],
    ['exit', 3],
  ] as const) {
    const start = performance.now()
    const { status, stdout, stderr } = spawnSync(process.execPath, [script, how], { encoding: 'utf8', timeout: 30000 })
    t.is(status, code, `${how}: ${stderr}`)
    t.regex(stdout, how === 'finish' ? /told[\s\S]*finished/ : /told/)
    t.true(performance.now() - start < 20000)
  }
})

test.serial('a worker that is ended amid a call that tells', async (t) => {
  await collect()
  const before = memory().current
  for (let i = 0; i < 4; i++) {
    const worker = new Worker(script, { argv: ['forever'] })
    await new Promise((told) => worker.once('message', told))
    t.is(await worker.terminate(), 1)
  }
  // All of them share one engine: what they began is dropped, and others do not wait for a thousand steps of each.
  const start = performance.now()
  using slow = await sampler()
  await slow.run(2)
  t.true(performance.now() - start < 3000, `waited ${performance.now() - start} ms`)
  slow.dispose()
  await collect()
  t.is(memory().current, before)
})

test.serial('files: tensors are counted', async (t) => {
  const path = join(folder, 'many.safetensors')
  const tensors = Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`t${i}`, tensor(new Float32Array(1000))]))
  const { told, onProgress } = listener()
  for (let i = 0; i < 5; i++) {
    await writeTensors(path, tensors, { onProgress })
    const { tensors: read } = await readTensors(path, { onProgress })
    t.is(Object.keys(read).length, 300)
  }
  t.true(told.every(({ done, total }) => total === 300 && done >= 1 && done <= 300))
})
