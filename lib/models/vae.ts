import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

export interface Encoded {
  /** f32 [N, h, w, C], of the latents' posterior; not scaled. */
  mean: Tensor
  logvar: Tensor
  /** With `eps` given: scale * (mean + deviation * eps). */
  sample_scaled?: Tensor
}

/** Pictures to latents and back, in diffusers' AutoencoderKL layout. Pictures are f32 [N, H, W, 3] in -1..1. */
export class Vae extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<Vae> {
    return new Vae('vae', await createHandle('vae', config, options))
  }
  async encode(inputs: { image: Tensor; eps?: Tensor }, options?: ForwardOptions): Promise<Encoded> {
    const { mean, logvar, sample_scaled } = (await this.call(
      'encode',
      { ...inputs },
      {},
      options,
    )) as unknown as Encoded
    return { mean, logvar, ...(sample_scaled && { sample_scaled }) }
  }
  /** Takes latents as `encode` gives them, not scaled. */
  async decode(latent: Tensor, options?: ForwardOptions): Promise<Tensor> {
    return output(await this.call('decode', { latent }, {}, options), 'image')
  }
}
