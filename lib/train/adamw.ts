import { DeemError } from '../errors.js'
import { type Module, matches, type NameMatch } from '../module.js'
import { type NativeAdamW, native } from '../native.js'
import { type CallOptions, run } from '../task.js'
import type { Tensor } from '../tensor.js'
import type { GradScaler } from './grad-scaler.js'

export interface ParameterGroup {
  match: NameMatch
  lr: number
  /** Absent: the base value, for parameters that decay at all. */
  weightDecay?: number
}

export interface AdamWOptions {
  /** Base learning rate. */
  lr: number
  betas?: readonly [number, number]
  eps?: number
  weightDecay?: number
  /** Gradients are scaled so that their global L2 norm is at most this; 0 or absent: no clipping. */
  maxGradNorm?: number
  /**
   * Whether weights of bf16 and f16 are trained in f32 copies, their masters, of which they hold the rounded values: what a step changes
   * by less than their last place is not lost. 4 bytes a weight more. They stay with the model, for other optimizers and to be saved, until
   * `dropMasters`. Default true; if false the weights themselves are updated, and masters they have are dropped.
   */
  masterWeights?: boolean
  /** The first group whose match fits a parameter's name sets its learning rate and decay. */
  groups?: readonly ParameterGroup[]
  /** Parameters that never decay, besides those of LayerNorms; default: names that contain `bias`, as published. */
  noDecay?: NameMatch
}

export interface OptimizedParameter {
  name: string
  lr: number
  weightDecay: number
}

/**
 * AdamW over the trainable parameters of one or more models, or over tensors by name.
 * A parameter's `lr` is multiplied by the factor given to {@link step}: schedules are functions from step to factor.
 *
 * Mixed precision: of a model built with `dtype: 'bf16'`, forward and backward read bf16 weights and give bf16 gradients; moments and
 * weights are kept here in f32 (`masterWeights`), the norm of the gradients is summed in f64, and gradients of several batches add up in
 * f32. To begin from f32 weights unrounded, call `model.keepMasters` before loading them.
 *
 * @example
 * ```ts
 * import type { Deem, DeemTrainInputs } from 'deem'
 * import { AdamW, cosineWithWarmup } from 'deem/train'
 *
 * async function train(model: Deem, batch: (step: number) => DeemTrainInputs): Promise<void> {
 *   model.freeze('mm_decoder.')
 *   using optimizer = new AdamW(model, {
 *     lr: 1e-3,
 *     weightDecay: 0.02,
 *     maxGradNorm: 1,
 *     groups: [{ match: 'sampling_offsets', lr: 1e-4 }],
 *   })
 *   const schedule = cosineWithWarmup(50, 600)
 *   for (let step = 0; step < 600; step++) {
 *     const { loss } = await model.trainStep(batch(step), optimizer, { lrFactor: schedule(step), seed: 1, step })
 *     console.log(step, loss)
 *   }
 * }
 * ```
 */
export class AdamW implements Disposable {
  /** @internal */
  readonly handle: NativeAdamW
  /** What is optimised, with the learning rate and decay of each. */
  readonly parameters: readonly OptimizedParameter[]

  constructor(of: Module | readonly Module[] | Record<string, Tensor>, options: AdamWOptions) {
    const {
      lr,
      betas = [0.9, 0.999],
      eps = 1e-8,
      weightDecay = 0,
      maxGradNorm = 0,
      groups = [],
      noDecay = 'bias',
      masterWeights = true,
      ...unknown
    } = options
    for (const name of Object.keys(unknown)) throw new DeemError('ERR_CONFIG', `[AdamW] unknown option '${name}'`)
    const named: { name: string; tensor: Tensor; norm: boolean }[] = []
    if (isModules(of)) {
      const models = Array.isArray(of) ? (of as readonly Module[]) : [of as Module]
      for (const [i, model] of models.entries())
        for (const p of model.parameters())
          if (p.trainable)
            named.push({
              name: models.length > 1 ? `${i}.${p.name}` : p.name,
              tensor: model.parameter(p.name),
              norm: p.norm,
            })
    } else {
      for (const [name, tensor] of Object.entries(of)) named.push({ name, tensor, norm: false })
    }
    if (named.length === 0)
      throw new DeemError('ERR_VALUE', '[AdamW] there is nothing to train: every parameter is frozen')
    const items = named.map(({ name, tensor, norm }) => {
      const group = groups.find((g) => matches(name, g.match))
      const decays = !norm && !matches(name, noDecay)
      return {
        name,
        tensor: tensor.handle,
        lr: group?.lr ?? lr,
        weightDecay: decays ? (group?.weightDecay ?? weightDecay) : 0,
      }
    })
    const settings = { beta1: betas[0], beta2: betas[1], eps, maxGradNorm, masterWeights }
    this.handle = new native.NativeAdamW(items, settings)
    this.parameters = items.map(({ name, lr, weightDecay }) => ({ name, lr, weightDecay }))
    if (isModules(of)) for (const { tensor } of named) tensor.dispose()
  }

  /**
   * Updates every parameter that has a gradient. Returns the gradient norm before clipping. Throws ERR_VALUE, changing nothing, where a
   * gradient is not finite; with a `scaler` such a step is left out, the norm is not finite and the scale falls.
   */
  async step(lrFactor = 1, { scaler, ...options }: CallOptions & { scaler?: GradScaler } = {}): Promise<number> {
    const norm = await run(() => this.handle.step(lrFactor, scaler?.scale), options)
    scaler?.update(norm)
    return norm
  }
  zeroGrad(): void {
    this.handle.zeroGrad()
  }
  /** Moments, step counts and masters as safetensors, atomically. */
  save(path: string, options?: CallOptions): Promise<void> {
    return run(() => this.handle.save(path), options)
  }
  /**
   * Throws ERR_WEIGHTS, changing nothing, where the state is of other parameters, has masters that this optimizer lacks or lacks those it
   * has, or where the masters do not round to the weights: load the model first.
   */
  load(path: string, options?: CallOptions): Promise<void> {
    return run(() => this.handle.load(path), options)
  }
  dispose(): void {
    this.handle.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

function isModules(of: Module | readonly Module[] | Record<string, Tensor>): of is Module | readonly Module[] {
  return Array.isArray(of) || ('kind' in of && typeof of.kind === 'string')
}
