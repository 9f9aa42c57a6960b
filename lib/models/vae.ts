import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

export interface Encoded {
  /** f32 [N, h, w, C], of the latents' posterior; not scaled. */
  mean: Tensor
  logvar: Tensor
  /** With `eps` given: scale * (mean + deviation * eps). */
  sample_scaled?: Tensor
}

/**
 * Tiles in pixels, multiples of the VAE's factor (8). Memory stays at that of one tile beside the picture itself: decoding 1024 x 1024 at
 * Stable Diffusion's sizes in f32 takes 2.7 GB whole, 0.7 GB with tiles of 512 and 0.2 GB with 256.
 *
 * A tile has statistics of its own in the group norms and its attention sees no other, so the result differs from that of the whole
 * picture. There, with fresh weights, by 1.4 % of its size (RMS) with tiles of 512 and 3.5 % with 256; of the small VAE of the tests,
 * whose random weights mix everything, by 8 % when decoded and 33 % when encoded, and by 20 % and 45 % without an overlap. A picture that
 * fits in one tile is the same to the bit. Tiled results have no gradient.
 */
export interface Tiling {
  /** Of a side. Default 512. */
  size?: number
  /** What neighbours share at least, and are blended over; at most half of the size. Default a quarter of the size. */
  overlap?: number
}

export interface VaeOptions extends ForwardOptions {
  /** Default false. */
  tiling?: boolean | Tiling
}

/** @internal As the engine takes it. */
export function tilingJson(tiling: boolean | Tiling = false): { tile_size?: number; tile_overlap?: number } {
  if (tiling === false) return {}
  const { size = 512, overlap } = tiling === true ? {} : tiling
  return { tile_size: size, ...(overlap !== undefined && { tile_overlap: overlap }) }
}

/** Pictures to latents and back, in diffusers' AutoencoderKL layout. Pictures are f32 [N, H, W, 3] in -1..1. */
export class Vae extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<Vae> {
    return new Vae('vae', await createHandle('vae', config, options))
  }
  /** With `tiling` there is no gradient: ERR_NO_GRADIENT where `grad` asks for one. */
  async encode(
    inputs: { image: Tensor; eps?: Tensor },
    { tiling = false, grad = tiling === false, ...options }: VaeOptions = {},
  ): Promise<Encoded> {
    const how = tilingJson(tiling)
    const y = await this.call('encode', { ...inputs }, how, { grad, ...options })
    const { mean, logvar, sample_scaled } = y as unknown as Encoded
    return { mean, logvar, ...(sample_scaled && { sample_scaled }) }
  }
  /** Takes scaled latents, as `sample_scaled`. */
  async decode(
    latent: Tensor,
    { tiling = false, grad = tiling === false, ...options }: VaeOptions = {},
  ): Promise<Tensor> {
    return output(await this.call('decode', { latent }, tilingJson(tiling), { grad, ...options }), 'image')
  }
}
