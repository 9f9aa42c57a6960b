import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

/** What the denoiser is told besides the latent: context tokens, and maps of images where it was built with MMFS. */
export interface UnetCondition extends Record<string, Tensor | undefined> {
  /** f32 [N, tokens, C] */
  context: Tensor
  /** f32 [N, K] of 0 and 1: which of K images may be sampled; their maps are `map.0`, `map.1`, .. [N, K, h, w, D]. */
  image_mask?: Tensor
}

/** The denoiser in Stable Diffusion's UNet2DCondition layout. Latents are f32 [N, h, w, C]. */
export class Unet extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<Unet> {
    return new Unet('unet', await createHandle('unet', config, options))
  }
  /** The prediction for noisy latents at `timesteps` i64 [N]. */
  async forward(
    inputs: UnetCondition & { sample: Tensor; timesteps: Tensor },
    { checkpoint = false, ...options }: ForwardOptions & { checkpoint?: boolean } = {},
  ): Promise<Tensor> {
    return output(await this.call('forward', inputs, { checkpoint }, options), 'pred')
  }
  /** The denoising loss of clean, scaled latents; noise and timesteps are drawn where they are not given. */
  async loss(
    inputs: UnetCondition & { latent: Tensor; noise?: Tensor; timesteps?: Tensor },
    options?: ForwardOptions,
  ): Promise<Record<'loss' | 'noisy' | 'pred' | 'target', Tensor>> {
    return (await this.call('loss', inputs, {}, options)) as Record<'loss' | 'noisy' | 'pred' | 'target', Tensor>
  }
  /** DDIM from noise `latent` to a clean latent; with `guidance` above 1 away from the context `negative` [1, tokens, C]. */
  async sample(
    inputs: UnetCondition & { latent: Tensor; negative?: Tensor },
    { steps = 20, guidance = 1, ...options }: ForwardOptions & { steps?: number; guidance?: number } = {},
  ): Promise<Tensor> {
    return output(await this.call('sample', inputs, { steps, guidance }, { ...options, grad: false }), 'latent')
  }
}
