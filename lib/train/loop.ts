import type { Module } from '../module.js'
import type { AdamW } from './adamw.js'
import { hasCheckpoint, loadCheckpoint, saveCheckpoint } from './checkpoint.js'

/** One value a step for every curve; what reports plot. */
export type History = Record<string, number[]>

export interface LoopOptions<B> {
  /** Steps in all. */
  steps: number
  /** Saved together, under these names. */
  models: Record<string, Module>
  optimizer: AdamW
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

/** Runs the steps that are left and returns the curves of all of them. Stopped and resumed, it gives the same bits as in one go. */
export async function trainLoop<B>(options: LoopOptions<B>): Promise<LoopResult> {
  const { steps, models, optimizer, batch, train, release, checkpoint, checkpointEvery = 60, signal, onStep } = options
  let history: History = {}
  let step = 0
  let earlier = 0
  const resumed = checkpoint !== undefined && hasCheckpoint(checkpoint)
  if (resumed) {
    const state = await loadCheckpoint(checkpoint, models, optimizer)
    step = Number(state['step'])
    history = state['history'] as History
    earlier = Number(state['seconds'])
  }
  const first = step
  const begin = performance.now()
  const seconds = () => earlier + (performance.now() - begin) / 1000
  const save = async () => {
    if (checkpoint) await saveCheckpoint(checkpoint, models, optimizer, { step, history, seconds: seconds() })
  }
  let saved = performance.now()
  let next = step < steps ? batch(step) : undefined
  while (step < steps && next !== undefined) {
    const now = next
    const running = train(now, step)
    running.catch(() => undefined) // awaited below; should batch() throw first, this one is not lost unseen
    next = step + 1 < steps ? batch(step + 1) : undefined
    let losses: Record<string, number>
    try {
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
      if (next !== undefined) release?.(next)
      await save()
      throw signal.reason
    }
    if (performance.now() - saved > checkpointEvery * 1000) {
      await save()
      saved = performance.now()
    }
  }
  if (step > first || !resumed) await save()
  return { history, seconds: seconds() }
}
