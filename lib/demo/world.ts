/** What all stages share. */
import { join } from 'node:path'
import type { SceneSource } from '../data/index.js'
import { Sprites, sceneTokenizer } from '../data/index.js'
import type { HostTensor } from '../host-tensor.js'
import type { CreateOptions, Module } from '../module.js'
import { type Tensor, tensor } from '../tensor.js'
import type { Tokenizer } from '../tokenizer/index.js'
import type { AdamW } from '../train/adamw.js'
import { type History, trainLoop } from '../train/loop.js'
import { cosineWithWarmup, type Schedule } from '../train/schedule.js'
import type { DemoConfig, StageName } from './config.js'
import type { Progress } from './progress.js'

export interface World {
  config: DemoConfig
  tokenizer: Tokenizer
  sprites: Sprites
  /** Scenes to train on: two vendors. */
  train: SceneSource
  /** Unseen scenes of the vendors trained on, and of one never trained on. */
  seen: SceneSource
  unseen: SceneSource
  /** Whether the consistency loss takes part. */
  feedback: boolean
  /** Where everything is kept. */
  dir: string
  progress: Progress
  signal: AbortSignal
}

export async function makeWorld(
  config: DemoConfig,
  { dir, feedback, progress, signal }: Pick<World, 'dir' | 'feedback' | 'progress' | 'signal'>,
): Promise<World> {
  const { seed } = config
  return {
    config,
    tokenizer: sceneTokenizer(),
    sprites: await Sprites.load(),
    train: { seed, split: 'train', vendors: ['twitter', 'google'] },
    seen: { seed, split: 'test', vendors: ['twitter', 'google'] },
    unseen: { seed, split: 'test', vendors: ['apple'] },
    feedback,
    dir,
    progress,
    signal,
  }
}

/** What a stage leaves for the report. */
export interface StageResult {
  stage: StageName
  history: History
  seconds: number
  steps: number
}

export interface StageRun<B> {
  models: Record<string, Module>
  optimizer: AdamW
  batch: (step: number) => B
  train: (batch: B, step: number, lrFactor: number) => Promise<Record<string, number>>
  /** Pictures a batch holds. */
  pictures: (batch: B) => number
  release: (batch: B) => void
}

/** Trains a stage, or what is left of it; one that is done is only loaded. */
export async function runStage<B>(w: World, stage: StageName, run: StageRun<B>): Promise<StageResult> {
  const { steps, warmup } = w.config.stages[stage]
  const schedule: Schedule = cosineWithWarmup(warmup, steps)
  let last = 0
  let started = false
  const { history, seconds } = await trainLoop<B>({
    steps,
    models: run.models,
    optimizer: run.optimizer,
    batch: run.batch,
    train: (batch, step) => {
      if (!started) w.progress.start(stage, steps, step)
      started = true
      last = run.pictures(batch)
      return run.train(batch, step, schedule(step))
    },
    release: run.release,
    checkpoint: join(w.dir, 'stages', stage),
    signal: w.signal,
    onStep: (step, losses) => w.progress.update(step, last, losses),
  })
  run.optimizer.dispose()
  if (!started) w.progress.say(`${stage}: done before`)
  return { stage, history, seconds, steps }
}

/** What a stage builds its models with. */
export function building({ config: { seed, precision = 'f32' } }: World, offset: number): CreateOptions {
  return { seed: seed + offset, dtype: precision }
}

/** Host arrays to engine tensors. */
export function toTensors(host: Readonly<Record<string, HostTensor>>): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(host).map(([name, h]) => [name, tensor(h.data, h.shape)]))
}

export function disposeAll(tensors: Readonly<Record<string, Tensor>>): void {
  for (const t of Object.values(tensors)) t.dispose()
}

/** The training rate of one stage: `lr` follows the schedule by the factor given to the optimizer. */
export function optimizerOptions(w: World, stage: StageName, betas: readonly [number, number] = [0.9, 0.99]) {
  const { lr, weight_decay } = w.config.stages[stage]
  return { lr, weightDecay: weight_decay, betas, eps: 1e-8, maxGradNorm: 1 }
}
