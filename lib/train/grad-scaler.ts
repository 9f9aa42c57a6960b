import { DeemError } from '../errors.js'

export interface GradScalerOptions {
  /** Default 65536. */
  initScale?: number
  /** What the scale is multiplied by after `growthInterval` steps without overflow; default 2. */
  growthFactor?: number
  /** What it is multiplied by after a step that overflowed; default 0.5. */
  backoffFactor?: number
  /** Default 2000. */
  growthInterval?: number
}

export interface GradScalerState {
  scale: number
  /** Steps since the scale changed last. */
  goodSteps: number
}

/**
 * Dynamic loss scaling for models of f16, whose gradients would vanish below 6e-8: the loss is multiplied by `scale`, the optimizer
 * divides the gradients by it in its one pass, and a step whose gradients overflow is left out and halves the scale. Models of bf16
 * have the range of f32 and need none. The rule and its defaults are those of Micikevicius et al., "Mixed precision training", section 3.2.
 *
 * @example
 * ```ts
 * import type { Deem, DeemTrainInputs } from 'deem'
 * import { AdamW, GradScaler } from 'deem/train'
 *
 * async function train(model: Deem, batch: (step: number) => DeemTrainInputs): Promise<void> {
 *   using optimizer = new AdamW(model, { lr: 1e-3, maxGradNorm: 1 })
 *   const scaler = new GradScaler()
 *   for (let step = 0; step < 600; step++)
 *     await model.trainStep(batch(step), optimizer, { scaler, seed: 1, step })
 * }
 * ```
 */
export class GradScaler {
  #scale: number
  #goodSteps = 0
  readonly #options: Required<GradScalerOptions>

  /** Throws ERR_VALUE for numbers with which the scale could not move as described. */
  constructor(options: GradScalerOptions = {}) {
    const { initScale = 65536, growthFactor = 2, backoffFactor = 0.5, growthInterval = 2000 } = options
    const wrong = (name: string, value: number) =>
      new DeemError('ERR_VALUE', `[GradScaler] ${name} cannot be ${String(value)}`)
    if (!isScale(initScale)) throw wrong('initScale', initScale)
    if (!(growthFactor >= 1 && Number.isFinite(growthFactor))) throw wrong('growthFactor', growthFactor)
    if (!(backoffFactor > 0 && backoffFactor < 1)) throw wrong('backoffFactor', backoffFactor)
    if (!(Number.isInteger(growthInterval) && growthInterval > 0)) throw wrong('growthInterval', growthInterval)
    this.#options = { initScale, growthFactor, backoffFactor, growthInterval }
    this.#scale = initScale
  }

  get scale(): number {
    return this.#scale
  }

  /**
   * Called by `trainStep` and `AdamW.step` with the norm of a step's gradients; one that is not finite was an overflow.
   * Throws ERR_VALUE when the scale has fallen below what f32 holds: then the gradients are not finite at any scale.
   */
  update(gradNorm: number): void {
    const { growthFactor, backoffFactor, growthInterval } = this.#options
    if (!Number.isFinite(gradNorm)) {
      this.#goodSteps = 0
      const next = this.#scale * backoffFactor
      if (!isScale(next))
        throw new DeemError(
          'ERR_VALUE',
          `[GradScaler] the gradients are not finite, not even at a scale of ${this.#scale}`,
        )
      this.#scale = next
    } else if (++this.#goodSteps >= growthInterval) {
      this.#goodSteps = 0
      const next = this.#scale * growthFactor
      if (isScale(next)) this.#scale = next
    }
  }

  state(): GradScalerState {
    return { scale: this.#scale, goodSteps: this.#goodSteps }
  }
  /** Takes what `state` gave; throws ERR_FORMAT for anything else. */
  load(state: unknown): void {
    const { scale, goodSteps } = (typeof state === 'object' && state !== null ? state : {}) as Partial<GradScalerState>
    if (!isScale(scale) || !Number.isInteger(goodSteps) || (goodSteps as number) < 0)
      throw new DeemError('ERR_FORMAT', '[GradScaler] this is no state of a scaler')
    this.#scale = scale
    this.#goodSteps = goodSteps as number
  }
}

/** Whether it and its inverse are normal numbers of f32. */
function isScale(v: unknown): v is number {
  return typeof v === 'number' && v >= 2 ** -126 && v <= 2 ** 126
}
