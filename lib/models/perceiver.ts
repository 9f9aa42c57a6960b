import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

/** The Q-Former that resamples any number of tokens to a fixed number of queries. */
export class Perceiver extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<Perceiver> {
    return new Perceiver('perceiver', await createHandle('perceiver', config, options))
  }
  /** `context` f32 [N, T, D], `context_mask` [N, T] with 0 where a token is not to be seen; gives [N, queries, C]. */
  async forward(
    inputs: { context: Tensor; context_mask?: Tensor },
    { training = false, ...options }: ForwardOptions & { training?: boolean } = {},
  ): Promise<Tensor> {
    return output(await this.call('forward', inputs, { training }, options), 'y')
  }
}
