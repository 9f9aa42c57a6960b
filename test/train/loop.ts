// The training loop: batches are made once, one ahead, and given back, however it ends.
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { hasCheckpoint, type LoopOptions, type LoopResult, trainLoop } from 'deem/train'
import { type Trainee, trainee } from '../_harness/trainee.js'

const base = mkdtempSync(join(tmpdir(), 'deem-loop-'))
test.after.always(() => rmSync(base, { recursive: true, force: true }))

interface Log {
  events: string[]
  made: number[]
  released: number[]
}

/** A loop whose steps take a turn of the event loop; what it does is written down. */
function logged(
  small: Trainee,
  options: Partial<LoopOptions<number>> & { steps: number },
): { log: Log; run: () => Promise<LoopResult> } {
  const log: Log = { events: [], made: [], released: [] }
  const { batch, train, ...rest } = options
  const run = () =>
    trainLoop<number>({
      models: { model: small.model },
      optimizer: small.optimizer,
      batch: (step) => {
        batch?.(step)
        log.made.push(step)
        log.events.push(`make ${step}`)
        return step
      },
      train: async (item, step) => {
        log.events.push(`train ${item}`)
        const losses = (await train?.(item, step)) ?? { loss: step }
        await new Promise((done) => setImmediate(done))
        log.events.push(`trained ${item}`)
        return losses
      },
      release: (item) => {
        log.released.push(item)
        log.events.push(`release ${item}`)
      },
      ...rest,
    })
  return { log, run }
}

/** Every batch that was made was given back, once and after its step. */
function balanced(t: ExecutionContext, { events, made, released }: Log): void {
  t.deepEqual([...released].sort(), made)
  for (const item of made) {
    const [began, ended] = [events.indexOf(`train ${item}`), events.indexOf(`trained ${item}`)]
    if (began >= 0 && ended >= 0) t.true(events.indexOf(`release ${item}`) > ended, `${item}: ${events}`)
  }
}

test('each batch is made while its predecessor trains', async (t) => {
  using small = await trainee()
  const { log, run } = logged(small, { steps: 3 })
  const { history, seconds } = await run()
  t.deepEqual(history, { loss: [0, 1, 2] })
  t.true(seconds > 0)
  t.deepEqual(log.events, [
    ...['make 0', 'train 0', 'make 1', 'trained 0', 'release 0'],
    ...['train 1', 'make 2', 'trained 1', 'release 1'],
    ...['train 2', 'trained 2', 'release 2'],
  ])
})

test('no steps, no batch', async (t) => {
  using small = await trainee()
  const { log, run } = logged(small, { steps: 0, checkpoint: join(base, 'none') })
  t.deepEqual((await run()).history, {})
  t.deepEqual(log.made, [])
  t.true(hasCheckpoint(join(base, 'none')))
})

const failing: Record<string, Partial<LoopOptions<number>>> = {
  'the first batch': {
    batch: () => {
      throw new Error('it fails')
    },
  },
  'a batch that is made ahead': {
    batch: (step) => {
      if (step === 2) throw new Error('it fails')
      return step
    },
  },
  'a step': {
    train: async (_, step) => {
      if (step === 1) throw new Error('it fails')
      return {}
    },
  },
  'a step and the batch after it': {
    batch: (step) => {
      if (step === 2) throw new Error('it fails')
      return step
    },
    train: async (_, step) => {
      if (step === 1) throw new Error('another')
      return {}
    },
  },
  'the listener': {
    onStep: (step) => {
      if (step === 2) throw new Error('it fails')
    },
  },
}

for (const [name, options] of Object.entries(failing))
  test(`when ${name} fails, nothing is lost or left running`, async (t) => {
    using small = await trainee()
    const { log, run } = logged(small, { steps: 4, ...options })
    await t.throwsAsync(run(), { message: 'it fails' })
    const { events } = log
    const until = events.length
    await new Promise((done) => setTimeout(done, 20))
    t.is(events.length, until, `still running: ${events}`)
    balanced(t, log)
  })

test('an abort: before the start nothing happens, later the running step is finished and saved', async (t) => {
  using small = await trainee()
  const reason = { any: 'reason' }
  const checkpoint = join(base, 'aborted')
  const early = logged(small, { steps: 3, checkpoint, signal: AbortSignal.abort(reason) })
  t.is(await early.run().catch((e: unknown) => e), reason)
  t.deepEqual(early.log.events, [])
  t.false(existsSync(checkpoint))

  const stop = new AbortController()
  const late = logged(small, {
    steps: 5,
    checkpoint,
    signal: stop.signal,
    train: async (_, step) => {
      if (step === 1) stop.abort(reason)
      return { loss: 10 + step }
    },
  })
  t.is(await late.run().catch((e: unknown) => e), reason)
  t.deepEqual(late.log.made, [0, 1, 2])
  t.false(late.log.events.includes('train 2'))
  balanced(t, late.log)

  const rest = logged(small, { steps: 5, checkpoint })
  t.deepEqual((await rest.run()).history, { loss: [10, 11, 2, 3, 4] })
  t.deepEqual(rest.log.made, [2, 3, 4])
  const done = logged(small, { steps: 5, checkpoint })
  t.deepEqual((await done.run()).history, { loss: [10, 11, 2, 3, 4] })
  t.deepEqual(done.log.events, [])
})

test('time spent before a stop counts', async (t) => {
  using small = await trainee()
  const checkpoint = join(base, 'time')
  const slow = async () => {
    await new Promise((done) => setTimeout(done, 60))
    return { loss: 1 }
  }
  const { seconds: first } = await logged(small, { steps: 2, checkpoint, train: slow }).run()
  const { seconds: both } = await logged(small, { steps: 3, checkpoint, train: slow }).run()
  // Two steps, then all three; timers may come a little early.
  t.true(first >= 0.11 && both >= 0.17, `${first} s, then ${both} s`)
})
