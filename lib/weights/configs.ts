/** Configurations as others write them, as the engine takes them. What changes the arithmetic and is not known is refused. */
import { DeemError } from '../errors.js'
import { isJsonObject, type JsonObject } from '../json.js'

/** Keys of housekeeping, which no arithmetic depends on. */
const housekeeping = new Set([
  '_class_name',
  '_diffusers_version',
  '_name_or_path',
  '_use_default_values',
  'architectures',
  'dtype',
  'model_type',
  'torch_dtype',
  'transformers_version',
])

/** Keys of newer diffusers that may stand in a config with the value they always had. Null counts as left out. */
const neutral: Record<'unet' | 'vae' | 'scheduler', JsonObject> = {
  unet: {
    addition_embed_type_num_heads: 64,
    attention_type: 'default',
    class_embeddings_concat: false,
    conv_in_kernel: 3,
    conv_out_kernel: 3,
    dropout: 0,
    mid_block_only_cross_attention: false,
    resnet_out_scale_factor: 1,
    resnet_skip_time_act: false,
    resnet_time_scale_shift: 'default',
    time_embedding_type: 'positional',
    transformer_layers_per_block: 1,
    upcast_attention: false,
  },
  vae: { force_upcast: true, mid_block_add_attention: true, use_post_quant_conv: true, use_quant_conv: true },
  scheduler: { rescale_betas_zero_snr: false, thresholding: false, skip_prk_steps: true },
}

/** Choices of a sampler: made where DEEM samples, not in its configuration. */
const samplerKeys = new Set([
  'algorithm_type',
  'clip_sample_range',
  'dynamic_thresholding_ratio',
  'final_sigmas_type',
  'interpolation_type',
  'lower_order_final',
  'sample_max_value',
  'solver_order',
  'solver_type',
  'timestep_spacing',
  'use_karras_sigmas',
  'variance_type',
])

/** A component of a diffusers folder: without housekeeping, nulls and new keys of neutral value; the engine judges the rest. */
export function diffusersConfig(kind: keyof typeof neutral, config: JsonObject): JsonObject {
  const out = Object.fromEntries(
    Object.entries(config).filter(([key, value]) => {
      if (value === null || housekeeping.has(key)) return false
      if (kind === 'scheduler' && samplerKeys.has(key)) return false
      return !(Object.hasOwn(neutral[kind], key) && neutral[kind][key] === value)
    }),
  )
  // One number of heads for all blocks, as Stable Diffusion 1 has it.
  const { attention_head_dim: heads, block_out_channels: widths } = out
  if (kind === 'unet' && typeof heads === 'number' && Array.isArray(widths))
    out['attention_head_dim'] = widths.map(() => heads)
  return out
}

/** A DEEM configuration without what libraries add to every config.json. */
export function deemConfig(config: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(config).filter(([key]) => !housekeeping.has(key)))
}

/** The keys of a LLaMA config that DEEM's `llm` takes. Throws ERR_CONFIG naming the file where it asks for other arithmetic. */
export function llamaConfig(config: JsonObject, path: string): JsonObject {
  const out = neededKeys(
    config,
    path,
    ['hidden_size', 'num_attention_heads', 'intermediate_size', 'num_hidden_layers', 'vocab_size', 'rms_norm_eps'],
    ['num_key_value_heads', 'max_position_embeddings', 'rope_theta'],
  )
  // transformers 5 keeps the base there.
  const rope = config['rope_parameters']
  if (isJsonObject(rope)) out['rope_theta'] ??= rope['rope_theta']
  out['max_position_embeddings'] ??= 2048 // transformers' own default
  const refuse = (key: string, value: unknown, only: string) => {
    throw new DeemError('ERR_CONFIG', `'${path}': ${key} must be ${only} but is ${JSON.stringify(value)}`)
  }
  const must = (key: string, only: unknown) => {
    const value = config[key] ?? only
    if (value !== only) refuse(key, value, JSON.stringify(only))
  }
  must('model_type', 'llama')
  must('hidden_act', 'silu')
  must('attention_bias', false)
  must('mlp_bias', false)
  must('head_dim', (out['hidden_size'] as number) / (out['num_attention_heads'] as number))
  if (config['rope_scaling'] != null) refuse('rope_scaling', config['rope_scaling'], 'null')
  if (isJsonObject(rope) && (rope['rope_type'] ?? 'default') !== 'default')
    refuse('rope_parameters.rope_type', rope['rope_type'], '"default"')
  return out
}

/** The named keys alone. Throws ERR_CONFIG naming the file that lacks one of `needed`. */
export function neededKeys(
  config: JsonObject,
  path: string,
  needed: readonly string[],
  optional: readonly string[] = [],
): JsonObject {
  const missing = needed.filter((key) => config[key] == null)
  if (missing.length > 0) throw new DeemError('ERR_CONFIG', `'${path}' lacks ${missing.join(', ')}`)
  return Object.fromEntries(
    [...needed, ...optional].flatMap((key) => (config[key] == null ? [] : [[key, config[key]]])),
  )
}

/** `changes` laid over `base`, object by object; lists are replaced whole. */
export function merge(base: JsonObject, changes: JsonObject): JsonObject {
  const out = new Map(Object.entries(base))
  for (const [key, value] of Object.entries(changes)) {
    const old = out.get(key)
    out.set(key, isJsonObject(old) && isJsonObject(value) ? merge(old, value) : value)
  }
  return Object.fromEntries(out)
}
