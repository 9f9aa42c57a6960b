import { type CreateOptions, createHandle, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

/** Samplers by their usual names. */
export type SamplerName = 'ddim' | 'ddpm' | 'pndm' | 'dpmpp' | 'euler' | 'euler_ancestral'

export interface SamplerConfig {
  /** The noise schedule, as in a diffusers scheduler_config.json. */
  scheduler: object
  /** Default ddim. */
  sampler?: SamplerName
  /** Default 20. */
  steps?: number
  /** Noise levels spaced as Karras et al. do; dpmpp and the Eulers. Default false. */
  karras?: boolean
  /** Noise of DDIM, from 0 (none, default) to 1 (as much as DDPM). */
  eta?: number
}

export interface SamplerPlan {
  /** f32 [E], what the denoiser is told at each evaluation. PNDM takes one more than the steps asked for. */
  timesteps: Float32Array
  /** f32 [E + 1], noise levels of dpmpp and the Eulers; empty for the others. */
  sigmas: Float32Array
  /** The first state is unit noise times it. */
  initialDeviation: number
}

/**
 * How a denoiser's outputs turn noise into a picture, one evaluation at a time; for a denoiser of your own.
 *
 * @see {@link PictureSession} for the denoiser of a model.
 */
export class Sampler extends Module {
  /** Throws ERR_CONFIG naming unknown keys and samplers, ERR_VALUE for steps outside of the schedule. */
  static async build(config: SamplerConfig, options: CreateOptions = {}): Promise<Sampler> {
    return new Sampler('sampler', await createHandle('sampler', config, options))
  }

  async plan(): Promise<SamplerPlan> {
    const y = await this.call('plan', {}, {}, { grad: false })
    const plan = {
      timesteps: output(y, 'timesteps').toFloat32(),
      sigmas: output(y, 'sigmas').toFloat32(),
      initialDeviation: output(y, 'initial_deviation').item(),
    }
    for (const t of Object.values(y)) t.dispose()
    return plan
  }

  /** Forgets the last run; the next evaluation is `evaluation`, above 0 to start from a picture with noise on it. */
  async start(evaluation = 0): Promise<void> {
    await this.call('start', {}, { evaluation }, { grad: false })
  }

  /** What the denoiser is to be shown of a state. */
  async scaleInput(sample: Tensor, evaluation: number): Promise<Tensor> {
    return output(await this.call('scale_input', { sample }, { evaluation }, { grad: false }), 'sample')
  }

  /**
   * The state after one evaluation; they go in order. `noise` (unit, of the state's shape) is wanted by ddpm, euler_ancestral and
   * by ddim with an eta: ERR_VALUE without it.
   */
  async step(sample: Tensor, denoised: Tensor, evaluation: number, noise?: Tensor): Promise<Tensor> {
    const inputs = { sample, output: denoised, noise }
    return output(await this.call('step', inputs, { evaluation }, { grad: false }), 'sample')
  }
}
