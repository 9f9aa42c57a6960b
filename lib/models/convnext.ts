import { type CreateOptions, createHandle, type ForwardOptions, Module } from '../module.js'
import type { Tensor } from '../tensor.js'

export interface EncoderOutput {
  /** f32 [N, 1 + h * w, D]: the pooled token, then those of the finest adapted grid. */
  tokens: Tensor
  /** f32 [N, h, w, D], adapted feature maps from fine to coarse. */
  c2: Tensor
  c3: Tensor
  c4: Tensor
  c5: Tensor
  /** f32 [N, C], after the head's norm. */
  pooled: Tensor
}

/** DEEM's image encoder: CLIP's ConvNeXt with an adapter on each stage. */
export class ConvNext extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<ConvNext> {
    return new ConvNext('convnext', await createHandle('convnext', config, options))
  }
  /** `pixels` f32 [N, H, W, 3], normalised as CLIP does. */
  async forward(
    pixels: Tensor,
    {
      training = false,
      checkpoint = false,
      ...options
    }: ForwardOptions & { training?: boolean; checkpoint?: boolean } = {},
  ): Promise<EncoderOutput> {
    return (await this.call('forward', { pixels }, { training, checkpoint }, options)) as unknown as EncoderOutput
  }
}
