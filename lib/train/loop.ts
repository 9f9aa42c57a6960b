import { DeemError } from '../errors.js'
import type { Module } from '../module.js'
import type { AdamW } from './adamw.js'
import { type CheckpointState, checkReplaceable, hasCheckpoint, loadCheckpoint, saveCheckpoint } from './checkpoint.js'
import type { GradScaler } from './grad-scaler.js'

/** One value a step for every curve; what reports plot. */
export type History = Record<string, number[]>

export interface LoopOptions<B> {
  /** Steps in all. */
  steps: number
  /** Saved together, under these names. */
  models: Record<string, Module>
  optimizer: AdamW
  /** The one that `train` uses, so that it is saved and resumed too. */
  scaler?: GradScaler
  /** The batch of a step, from the step's number alone; made for step + 1 while step runs. */
  batch: (step: number) => B
  /** Trains one step; resolves to what is to be plotted. */
  train: (batch: B, step: number) => Promise<Record<string, number>>
  /** Gives back what a batch holds. */
  release?: (batch: B) => void
  /** Folder of the checkpoint; training goes on from the one that lies there. */
  checkpoint?: string
  /** Seconds between checkpoints; default 60. */
  checkpointEvery?: number
  /** Stops after the running step, saves, and rejects with `signal.reason`. */
  signal?: AbortSignal
  onStep?: (step: number, losses: Record<string, number>) => void
}

export interface LoopResult {
  history: History
  /** Spent in the loop, earlier runs that were resumed included. */
  seconds: number
}

/**
 * Runs the steps that are left and returns the curves of all of them. Stopped and resumed, it gives the same bits as in one go.
 *
 * @example
 * ```ts
 * import type { Deem, DeemTrainInputs } from 'deem'
 * import { AdamW, trainLoop } from 'deem/train'
 *
 * async function run(model: Deem, batch: (step: number) => DeemTrainInputs, signal: AbortSignal) {
 *   using optimizer = new AdamW(model, { lr: 1e-3 })
 *   const { history } = await trainLoop({
 *     steps: 600,
 *     models: { model },
 *     optimizer,
 *     batch,
 *     train: (inputs, step) => model.trainStep(inputs, optimizer, { seed: 1, step }),
 *     checkpoint: 'runs/mine',
 *     signal,
 *   })
 *   return history
 * }
 * ```
 */
export async function trainLoop<B>(options: LoopOptions<B>): Promise<LoopResult> {
  const {
    steps,
    models,
    optimizer,
    scaler,
    batch,
    train,
    release,
    checkpoint,
    checkpointEvery = 60,
    signal,
    onStep,
  } = options
  signal?.throwIfAborted()
  const resumed = checkpoint !== undefined && hasCheckpoint(checkpoint)
  // Said before hours of training, not after.
  if (checkpoint !== undefined && !resumed) checkReplaceable(checkpoint)
  const start = resumed
    ? progressOf(await loadCheckpoint(checkpoint, models, optimizer), checkpoint, scaler)
    : { step: 0, history: {}, seconds: 0 }
  const { history } = start
  let { step } = start
  const begin = performance.now()
  const seconds = () => start.seconds + (performance.now() - begin) / 1000
  const save = async () => {
    const state = { step, history, seconds: seconds(), ...(scaler && { scaler: scaler.state() }) }
    if (checkpoint) await saveCheckpoint(checkpoint, models, optimizer, state)
  }
  const make = (at: number): { batch: B } | undefined => (at < steps ? { batch: batch(at) } : undefined)
  let saved = performance.now()
  let next = make(step)
  try {
    while (next) {
      const now = next.batch
      next = undefined
      let losses: Record<string, number>
      try {
        const running = train(now, step)
        try {
          next = make(step + 1)
        } catch (error) {
          await running.catch(() => undefined) // nothing may use the batch when it is released
          throw error
        }
        losses = await running
      } finally {
        release?.(now)
      }
      for (const [name, value] of Object.entries(losses)) {
        history[name] ??= []
        history[name].push(value)
      }
      step++
      onStep?.(step, losses)
      if (signal?.aborted) {
        await save()
        throw signal.reason
      }
      if (performance.now() - saved > checkpointEvery * 1000) {
        await save()
        saved = performance.now()
      }
    }
  } finally {
    if (next) release?.(next.batch)
  }
  if (step > start.step || !resumed) await save()
  return { history, seconds: seconds() }
}

interface LoopState {
  step: number
  history: History
  seconds: number
}

/** What the loop saved; throws ERR_FORMAT where another program wrote the state. */
function progressOf(state: CheckpointState, dir: string, scaler: GradScaler | undefined): LoopState {
  const { step, history, seconds } = state
  const curves = typeof history === 'object' && history !== null && Object.values(history).every(Array.isArray)
  if (!Number.isInteger(step) || (step as number) < 0 || !curves || !Number.isFinite(seconds))
    throw new DeemError('ERR_FORMAT', `the state of '${dir}' is not that of a training loop`)
  scaler?.load(state.scaler)
  return { step: step as number, history: history as History, seconds: seconds as number }
}
