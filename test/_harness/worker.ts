// What the workers of test/native/worker.ts do; `workerData.task` says which.
import { parentPort, workerData } from 'node:worker_threads'
import { DeemError, noGrad, ops, type Tensor, tensor } from 'deem'
import { trainee } from './trainee.js'

export interface WorkerTask {
  task: 'train' | 'forever' | 'queue' | 'spin' | 'exit' | 'throw' | 'own' | 'use'
  seed?: number
  steps?: number
}

const { task, seed = 1, steps = 0 } = workerData as WorkerTask
const say = (value: unknown) => parentPort?.postMessage(value)

async function train() {
  using small = await trainee(seed)
  for (let i = 0; task === 'forever' || i < steps; i++) say(await small.step())
  say(small.values().reduce((a, v) => a + v, 0))
}

/** Many steps at once, so that the end of the worker finds them waiting. */
async function queue() {
  const small = await trainee(seed)
  const all = Array.from({ length: steps }, () => small.step())
  say('queued')
  await all[0]
  if (task === 'exit') process.exit(7)
  if (task === 'throw') throw new Error('on purpose')
  await Promise.all(all)
}

/** Operations without a pause. */
function spin() {
  const x = ops.full([64, 64], 0.01, 'f32')
  say('spinning')
  for (;;) ops.matmul(x, x, false, false).dispose()
}

/** What belongs to this environment alone: whether graphs are recorded, and errors. */
function own() {
  const x = tensor([1])
  x.requiresGrad = true
  let code = ''
  try {
    ops.reshape(x, [2])
  } catch (error) {
    code = DeemError.isInstance(error) && error instanceof DeemError ? error.code : String(error)
  }
  noGrad(() => {
    say({ code, tracked: ops.neg(x).tracked })
    // Stays without graphs until the main thread has looked.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300)
  })
  say({ code, tracked: ops.neg(x).tracked })
}

/** A handle from another thread must be refused, not used. */
function use() {
  parentPort?.once('message', (x: Tensor) => {
    try {
      ops.neg(x)
      say('used')
    } catch (error) {
      say((error as DeemError).code ?? String(error))
    }
  })
  say('ready')
}

const run = { train, forever: train, queue, exit: queue, throw: queue, spin, own, use }[task]
await run()
