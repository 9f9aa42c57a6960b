/** The folders that a model's weights can be written as: which parts they have, and how each part's config.json reads. */
import { DeemError } from '../errors.js'
import { isJsonObject, type JsonObject } from '../json.js'
import type { DType } from '../native.js'
import { deemNames, llamaNames, type Naming, openClipNames, unetNames, vaeNames } from './names.js'

export const weightLayouts = ['deem', 'llama', 'stable-diffusion', 'open-clip'] as const
/**
 * `deem`: all of it under the published names. `llama`: the language model with its original vocabulary, without image layers,
 * as transformers reads it. `stable-diffusion`: unet, vae and scheduler as diffusers reads them. `open-clip`: the image tower.
 */
export type WeightLayout = (typeof weightLayouts)[number]

export interface LayoutPart {
  /** Below the target; '' is the target itself. */
  folder: string
  /** What weight files begin with. */
  stem: string
  naming: Naming
  /** Its config.json. */
  config?: JsonObject
}

interface LayoutOptions {
  dtype: DType
  oldAttentionNames: boolean
}

/** Where the weights of a layout go. Throws ERR_CONFIG where the configuration lacks what the layout needs. */
export function partsOf(layout: WeightLayout, config: JsonObject, options: LayoutOptions): LayoutPart[] {
  switch (layout) {
    case 'deem':
      return [{ folder: '', stem: 'model', naming: deemNames(options.oldAttentionNames), config }]
    case 'llama':
      return [{ folder: '', stem: 'model', naming: llamaNames(), config: llamaJson(config, options.dtype) }]
    case 'stable-diffusion': {
      const sd = objectAt(config, 'sd')
      const stem = 'diffusion_pytorch_model'
      return [
        {
          folder: 'unet',
          stem,
          naming: unetNames,
          config: { _class_name: 'UNet2DConditionModel', ...objectAt(sd, 'unet') },
        },
        { folder: 'vae', stem, naming: vaeNames(options.oldAttentionNames), config: vaeJson(objectAt(sd, 'vae')) },
      ]
    }
    case 'open-clip':
      return [{ folder: '', stem: 'open_clip_model', naming: openClipNames }]
    default:
      throw new DeemError('ERR_VALUE', `layout must be one of ${weightLayouts.join(', ')} but is '${layout}'`)
  }
}

/** Files beside the weights' own, by path below the target. */
export function extraJson(layout: WeightLayout, config: JsonObject): Record<string, JsonObject> {
  if (layout !== 'stable-diffusion') return {}
  const scheduler = objectAt(objectAt(config, 'sd'), 'scheduler')
  return { 'scheduler/scheduler_config.json': { _class_name: 'PNDMScheduler', ...scheduler } }
}

/** What a folder of the same layout holds besides, and no model here has: copied where it is asked for. */
export const companions: Record<WeightLayout, readonly string[]> = {
  deem: [
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'chat_template.jinja',
    'special_tokens_map.json',
  ],
  llama: [
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'chat_template.jinja',
    'special_tokens_map.json',
    'added_tokens.json',
    'generation_config.json',
  ],
  'stable-diffusion': ['model_index.json', 'text_encoder', 'tokenizer', 'feature_extractor'],
  'open-clip': ['open_clip_config.json'],
}

export function vocabularyOf(config: JsonObject): number {
  const size = objectAt(config, 'llm')['vocab_size']
  if (typeof size !== 'number') throw new DeemError('ERR_CONFIG', 'the configuration lacks llm.vocab_size')
  return size
}

function objectAt(config: JsonObject, key: string): JsonObject {
  const value = config[key]
  if (!isJsonObject(value)) throw new DeemError('ERR_CONFIG', `the configuration lacks the object '${key}'`)
  return value
}

export const torchNames: Partial<Record<DType, string>> = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' }

function llamaJson(config: JsonObject, dtype: DType): JsonObject {
  const llm = objectAt(config, 'llm')
  const tokens = objectAt(config, 'special_token_dict')
  const vocabulary = vocabularyOf(config)
  // transformers refuses ids outside of the table, and DEEM may pad with one of its own.
  const ids = ['bos_token_id', 'eos_token_id', 'pad_token_id'].filter((key) => (tokens[key] as number) < vocabulary)
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    torch_dtype: torchNames[dtype],
    hidden_act: 'silu',
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: false,
    use_cache: true,
    hidden_size: llm['hidden_size'],
    intermediate_size: llm['intermediate_size'],
    num_hidden_layers: llm['num_hidden_layers'],
    num_attention_heads: llm['num_attention_heads'],
    num_key_value_heads: llm['num_key_value_heads'] ?? llm['num_attention_heads'],
    max_position_embeddings: llm['max_position_embeddings'],
    rms_norm_eps: llm['rms_norm_eps'],
    rope_theta: llm['rope_theta'] ?? 10000,
    vocab_size: vocabulary,
    ...Object.fromEntries(ids.map((key) => [key, tokens[key]])),
  }
}

/** With what the engine takes for granted and diffusers does not: its default is a VAE of one block. */
function vaeJson(vae: JsonObject): JsonObject {
  const blocks = (vae['block_out_channels'] as number[] | undefined)?.length ?? 0
  return {
    _class_name: 'AutoencoderKL',
    down_block_types: new Array(blocks).fill('DownEncoderBlock2D'),
    up_block_types: new Array(blocks).fill('UpDecoderBlock2D'),
    scaling_factor: 0.18215,
    ...vae,
  }
}
