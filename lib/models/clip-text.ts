import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

/** The text encoder of Stable Diffusion 2.1 (OpenCLIP), causal and without a padding mask. */
export class ClipText extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<ClipText> {
    return new ClipText('clip_text', await createHandle('clip_text', config, options))
  }
  /** i64 [N, length] to the last hidden state, f32 [N, length, C], after the final norm. */
  async forward(input_ids: Tensor, options?: ForwardOptions): Promise<Tensor> {
    return output(await this.call('forward', { input_ids }, {}, options), 'last_hidden_state')
  }
}
