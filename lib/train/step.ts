import type { Module } from '../module.js'
import { native } from '../native.js'
import { optionsJson } from '../options.js'
import { type CallOptions, run } from '../task.js'
import type { Tensor } from '../tensor.js'
import type { AdamW } from './adamw.js'
import type { GradScaler } from './grad-scaler.js'

export interface TrainStepOptions extends CallOptions {
  /** Which method of the model gives the output `loss`. Default `train`. */
  method?: string
  /** Options of that method. */
  options?: object
  /** Multiplies every learning rate, see schedules. Default 1. */
  lrFactor?: number
  /** Multiplies the loss; 1 / n when n batches are accumulated before an optimizer step. Default 1. */
  lossScale?: number
  /** For models of f16: the loss is multiplied by its scale and the optimizer divides; a step whose gradients overflow is left out. */
  scaler?: GradScaler
  /** Dropout and stochastic depth draw from (seed, step). Defaults 0. */
  seed?: number
  step?: number
}

/**
 * One training step as one native task: forward, backward, clipping, AdamW. Without an optimizer the gradients are kept, to be
 * accumulated; an error drops them all. Resolves to every scalar output and `grad_norm`, which is not finite where a `scaler` was given
 * and the step was left out.
 */
export async function trainStep(
  model: Module,
  inputs: Record<string, Tensor | undefined>,
  optimizer: AdamW | null,
  {
    method = 'train',
    options = {},
    lrFactor = 1,
    lossScale = 1,
    scaler,
    seed = 0,
    step = 0,
    ...call
  }: TrainStepOptions = {},
): Promise<Record<string, number>> {
  const handles = Object.fromEntries(
    Object.entries(inputs).flatMap(([name, t]) => (t === undefined ? [] : [[name, t.handle]])),
  )
  const scalars = await run(
    () =>
      native.trainStep(model.handle, method, handles, optionsJson(options), optimizer?.handle ?? null, {
        lrFactor,
        lossScale,
        ...(scaler && { gradScale: scaler.scale }),
        seed,
        step,
      }),
    call,
  )
  if (optimizer && scaler) scaler.update(scalars.grad_norm as number)
  return scalars
}
