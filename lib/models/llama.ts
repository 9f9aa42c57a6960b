import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { Tensor } from '../tensor.js'

export interface LlamaInputs extends Record<string, Tensor | undefined> {
  /** f32 [B, L, C]; `embed` makes them of ids. Earlier keys and values go in as `past_key.I`, `past_value.I` [B, H, T, D]. */
  embeds: Tensor
  /** i64 [B, T + L], 0 on padding. */
  keep?: Tensor
  /** f32 [B, K, rows, D], the flattened maps of K images, for MMFS layers. */
  features?: Tensor
  /** f32 [B, L, K], 1 where a position may sample an image. */
  image_mask?: Tensor
  /** i64 [B, L]; default: the running count of kept positions. */
  positions?: Tensor
}

export interface LlamaOptions extends ForwardOptions {
  /** Returns `key.I` and `value.I` of every layer. Default false. */
  useCache?: boolean
  /** Returns `layer_in.I` of every layer. Default false. */
  hiddenStates?: boolean
  /** Keeps only layer inputs and computes the rest again in backward. Default false. */
  checkpoint?: boolean
}

/** LLaMA whose layers, at a given frequency, also sample the maps of the images before them. */
export class Llama extends Module {
  static async build(config: object, options: CreateOptions = {}): Promise<Llama> {
    return new Llama('llama', await createHandle('llama', config, options))
  }
  /** i64 [B, L] to f32 [B, L, C]. */
  async embed(input_ids: Tensor, options?: ForwardOptions): Promise<Tensor> {
    return output(await this.call('embed', { input_ids }, {}, options), 'embeds')
  }
  /** `last_hidden` [B, L, C] after the final norm, and what the options ask for. */
  forward(
    inputs: LlamaInputs,
    { useCache = false, hiddenStates = false, checkpoint = false, ...options }: LlamaOptions = {},
  ): Promise<Record<string, Tensor>> {
    const how = { use_cache: useCache, hidden_states: hiddenStates, checkpoint }
    return this.call('forward', inputs, how, options)
  }
}
