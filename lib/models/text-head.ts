import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

/** The language model's head, frozen, plus a trained one on DEEM's added tokens. */
export class TextHead extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<TextHead> {
    return new TextHead('text_head', await createHandle('text_head', config, options))
  }
  /** f32 [.., C] to logits [.., vocabulary]. */
  async forward(hidden: Tensor, options?: ForwardOptions): Promise<Tensor> {
    return output(await this.call('forward', { hidden }, {}, options), 'logits')
  }
}
