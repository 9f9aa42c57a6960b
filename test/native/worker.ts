// The package in worker threads: they share one engine, and neither their work nor their end disturbs the others.
import { spawnSync } from 'node:child_process'
import { on, once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { memory, ops, tensor } from 'deem'
import { collect } from '../_harness/memory.js'
import { trainee } from '../_harness/trainee.js'
import type { WorkerTask } from '../_harness/worker.js'

test.beforeEach(collect)

const start = (task: WorkerTask) => new Worker(new URL('../_harness/worker.js', import.meta.url), { workerData: task })

/** Everything a worker says until its end, which must be a good one. */
async function all(worker: Worker): Promise<unknown[]> {
  const said: unknown[] = []
  worker.on('message', (value) => said.push(value))
  const [code] = (await once(worker, 'exit')) as [number]
  if (code !== 0) throw new Error(`a worker ended with ${code}`)
  return said
}

/** Waits until the worker has said `count` things. */
async function heard(worker: Worker, count = 1): Promise<unknown> {
  let left = count
  for await (const [value] of on(worker, 'message')) if (--left === 0) return value
  return undefined
}

/** What a training alone gives: losses, then the sum of its parameters. */
async function alone(seed: number, steps: number): Promise<number[]> {
  using small = await trainee(seed)
  const losses: number[] = []
  for (let i = 0; i < steps; i++) losses.push(await small.step())
  return [...losses, small.values().reduce((a, v) => a + v, 0)]
}

test.serial('four workers and the main thread train at once, two are ended midway', async (t) => {
  const steps = 30
  const want = await Promise.all([1, 2, 3].map((seed) => alone(seed, steps)))
  await collect()
  const before = memory().current
  const ended = [start({ task: 'forever', seed: 4 }), start({ task: 'forever', seed: 5 })]
  const whole = [start({ task: 'train', seed: 1, steps }), start({ task: 'train', seed: 2, steps })].map(all)
  const mine = alone(3, steps)
  await Promise.all(ended.map((worker) => heard(worker, 5)))
  t.deepEqual(await Promise.all(ended.map((worker) => worker.terminate())), [1, 1])
  t.deepEqual([...(await Promise.all(whole)), await mine], want)
  await collect()
  t.is(memory().current, before, 'what the workers held is free')
})

test.serial('workers that end with work under way and waiting', async (t) => {
  const before = memory().current
  for (const delay of [0, 1, 2, 5, 10, 20]) {
    const workers = [start({ task: 'queue', steps: 60 }), start({ task: 'queue', steps: 60, seed: 2 })]
    await Promise.all(workers.map((worker) => heard(worker)))
    await sleep(delay)
    await Promise.all(workers.map((worker) => worker.terminate()))
    t.deepEqual([...ops.square(tensor([1, 2, 3])).toFloat32()], [1, 4, 9], `ended after ${delay} ms`)
  }
  // Tasks of an environment that is gone still run; they hold their inputs until then.
  ops.neg(tensor([1])).dispose()
  await collect()
  t.is(memory().current, before)
})

test.serial('workers that end amid operations, by process.exit and by an error', async (t) => {
  const before = memory().current
  const spinning = start({ task: 'spin' })
  await heard(spinning)
  t.is(await spinning.terminate(), 1)

  const exiting = start({ task: 'exit', steps: 20 })
  t.deepEqual(await once(exiting, 'exit'), [7])

  const throwing = start({ task: 'throw', steps: 20 })
  const [error] = (await once(throwing, 'error')) as [Error]
  t.is(error.message, 'on purpose')

  t.is((await alone(1, 2)).length, 3)
  await collect()
  t.is(memory().current, before)
})

test.serial('graphs and errors belong to each thread', async (t) => {
  const worker = start({ task: 'own' })
  const said: unknown[] = []
  worker.on('message', (value) => said.push(value))
  await once(worker, 'message')
  const x = tensor([1])
  x.requiresGrad = true
  t.true(ops.neg(x).tracked, 'the worker records nothing now, this thread does')
  t.deepEqual(await once(worker, 'exit'), [0])
  t.deepEqual(said, [
    { code: 'ERR_SHAPE', tracked: false },
    { code: 'ERR_SHAPE', tracked: true },
  ])
})

test.serial('a handle that is posted to a worker is refused there', async (t) => {
  const worker = start({ task: 'use' })
  await once(worker, 'message')
  const x = tensor([1])
  let refused = 'DataCloneError'
  try {
    worker.postMessage(x)
    refused = (await once(worker, 'message'))[0] as string
  } catch (error) {
    t.is((error as Error).name, refused)
  }
  t.true(['DataCloneError', 'ERR_DTYPE'].includes(refused), `the worker ${refused} it`)
  await worker.terminate()
  t.is(x.item(), 1)
})

test.serial('many workers come and go', async (t) => {
  const want = await alone(1, 3)
  await collect()
  const before = memory().current
  for (let round = 0; round < 3; round++) {
    const results = await Promise.all(Array.from({ length: 6 }, () => all(start({ task: 'train', seed: 1, steps: 3 }))))
    for (const result of results) t.deepEqual(result, want)
  }
  await collect()
  t.is(memory().current, before)
})

// The process may end while the engine works: by its end of tasks, by exit, by an error, by a signal's handler.
const endings: Record<string, [script: string, status: number]> = {
  'nothing is left to do': ['', 0],
  'process.exit': ['process.exit(3)', 3],
  'process.exit amid the work': ['setTimeout(() => process.exit(4), 5)', 4],
  'an error that nobody catches': ['throw new Error("on purpose")', 1],
}
test('a process ends cleanly with work under way', (t) => {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  const trainer = new URL('../_harness/trainee.js', import.meta.url).href
  for (const [name, [ending, status]] of Object.entries(endings)) {
    const script = `
      import { trainee } from ${JSON.stringify(trainer)}
      const small = await trainee()
      let done = 0
      for (let i = 0; i < 50; i++) small.step().then(() => done++)
      process.on('exit', () => console.log(done))
      ${ending}`
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], { cwd: root, encoding: 'utf8' })
    t.is(child.signal, null, `${name}: ${child.stderr}`)
    t.is(child.status, status, `${name}: ${child.stderr}`)
    if (status === 0) t.is(child.stdout.trim(), '50', 'work under way keeps the process alive')
  }
})
