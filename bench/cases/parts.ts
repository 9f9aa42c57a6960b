/** Parts of the model at published sizes, and of the one in configs/nano.yaml. */
import type { Case, Json, Pass, Precision, Settings, Spec } from '../case.js'
import { type Count, countConvNext, countLlamaLayer, countPerceiver, countUnet, countVae } from './count.js'

export const convnextBase = {
  depths: [3, 3, 27, 3],
  dims: [128, 256, 512, 1024],
  embed_dim: 640,
  adapter_dim: 1024,
  layer_scale_init: 0.1,
}

export const resampler = {
  num_queries: 77,
  hidden_size: 768,
  encoder_hidden_size: 1024,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  cross_attention_frequency: 2,
  qk_normalization: true,
  layer_norm_eps: 1e-12,
  hidden_dropout_prob: 0,
  attention_probs_dropout_prob: 0,
}

/** One layer of Vicuna-7B. The vocabulary takes no part. */
export const llamaLayer = {
  hidden_size: 4096,
  num_attention_heads: 32,
  num_key_value_heads: 32,
  intermediate_size: 11008,
  num_hidden_layers: 1,
  vocab_size: 8,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 2048,
  mmfs_heads: 16,
  mmfs_points: 8,
  mmfs_base_side: 16,
  mmfs_max_images: 50,
  image_embed_dim: 1024,
  cross_attention_frequency: 4,
  spatial_shapes: [32, 16, 8],
}

const unet = (more: {
  block_out_channels: number[]
  attention_head_dim: number[]
  layers_per_block: number
  cross_attention_dim: number
  in_channels: number
  norm_num_groups: number
  plainLast: boolean
}) => {
  const { plainLast, ...rest } = more
  const n = more.block_out_channels.length
  const types = (name: string, plain: number) =>
    Array.from({ length: n }, (_, i) => (plainLast && i === plain ? `${name}2D` : `CrossAttn${name}2D`))
  return {
    ...rest,
    out_channels: more.in_channels,
    down_block_types: types('DownBlock', n - 1),
    up_block_types: types('UpBlock', 0),
    use_linear_projection: true,
    norm_eps: 1e-5,
  }
}
export const unetSd21 = unet({
  block_out_channels: [320, 640, 1280, 1280],
  attention_head_dim: [5, 10, 20, 20],
  layers_per_block: 2,
  cross_attention_dim: 1024,
  in_channels: 4,
  norm_num_groups: 32,
  plainLast: true,
})
export const unetNano = unet({
  block_out_channels: [96, 128],
  attention_head_dim: [4, 4],
  layers_per_block: 1,
  cross_attention_dim: 128,
  in_channels: 16,
  norm_num_groups: 16,
  plainLast: false,
})
const mmfsSd21 = {
  attn_dim: 1024,
  heads: 16,
  points: 8,
  grid: 64,
  max_images: 10,
  value_sides: [64, 32, 16, 8],
  base_sides: [32, 16, 8, 4],
  feature_dim: 1024,
}

export const vaeSd21 = {
  in_channels: 3,
  out_channels: 3,
  block_out_channels: [128, 256, 512, 512],
  layers_per_block: 2,
  latent_channels: 4,
  norm_num_groups: 32,
  scaling_factor: 0.18215,
}

interface Part {
  name: string
  program: string
  config: Settings
  settings?: Settings
  inputs: Record<string, Spec>
  count: Count
  batch?: number
  /** Whether backward gives gradients of the parameters. */
  trains: boolean
  passes: readonly Pass[]
  checkpointing?: boolean
  /** Whether there is a forward pass with weights kept in the order that products read, too. */
  prepacks?: boolean
}

function partCases({
  name,
  program,
  config,
  settings = {},
  inputs,
  count,
  batch = 1,
  trains,
  passes,
  checkpointing,
  prepacks,
}: Part): Case[] {
  const make = (pass: Pass, how?: 'checkpointed' | 'prepacked'): Case => ({
    name: how ? `${name}/${pass}-${how}` : `${name}/${pass}`,
    group: 'part',
    program,
    settings: {
      ...settings,
      config: config as Json,
      trains,
      checkpoint: how === 'checkpointed',
      prepack: how === 'prepacked',
    },
    inputs,
    pass,
    precisions: (how === 'prepacked' ? ['bf16'] : ['f32', 'bf16']) satisfies Precision[], // f32 keeps nothing
    // What is computed again for a checkpoint is not counted: it is no use to anybody.
    work: (perElement) => ({
      flops: batch * (pass === 'forward' ? count.forward : count.backward(trains)),
      bytes: count.weights * perElement * (pass === 'forward' ? 1 : trains ? 3 : 2),
    }),
  })
  return [
    ...passes.map((pass) => make(pass)),
    ...(checkpointing ? [make('backward', 'checkpointed')] : []),
    ...(prepacks ? [make('forward', 'prepacked')] : []),
  ]
}

const both: readonly Pass[] = ['forward', 'backward']
const latentOf = (batch: number, side: number, channels: number): Spec => ({ shape: [batch, side, side, channels] })
const timesteps = (batch: number): Spec => ({ shape: [batch], dtype: 'i64', fill: { below: 1000 }, grad: false })

function llama(length: number, images: number): Part {
  const features = llamaLayer.spatial_shapes.reduce((sum, s) => sum + s * s, 0)
  return {
    name: `llama-7b-layer/${length}`,
    program: 'llama',
    config: llamaLayer,
    inputs: {
      embeds: { shape: [1, length, 4096] },
      features: { shape: [1, images, features, 1024] },
      image_mask: { shape: [1, length, images], dtype: 'f32', fill: { below: 2 }, grad: false },
    },
    count: countLlamaLayer(llamaLayer, length, images),
    trains: true,
    passes: both,
    checkpointing: true,
  }
}

export const parts: Case[] = [
  {
    name: 'convnext-b/256px',
    program: 'convnext',
    config: convnextBase,
    inputs: { pixels: { ...latentOf(1, 256, 3), grad: false } },
    count: countConvNext(convnextBase, 256),
    trains: true,
    passes: both,
    checkpointing: true,
    prepacks: true,
  },
  {
    name: 'resampler/257',
    program: 'perceiver',
    config: resampler,
    inputs: { context: { shape: [1, 257, 1024] } },
    count: countPerceiver(resampler, 257),
    trains: true,
    passes: both,
    prepacks: true,
  },
  llama(512, 2),
  llama(2048, 4),
  {
    name: 'unet-nano/32x8px',
    program: 'unet',
    config: { unet: unetNano },
    inputs: { sample: latentOf(32, 8, 16), timesteps: timesteps(32), context: { shape: [32, 16, 128] } },
    count: countUnet(unetNano, 8, 16),
    batch: 32,
    trains: true,
    passes: both,
    checkpointing: true,
  },
  {
    name: 'unet-sd2.1/64px',
    program: 'unet',
    config: { unet: unetSd21 },
    inputs: { sample: latentOf(1, 64, 4), timesteps: timesteps(1), context: { shape: [1, 77, 1024] } },
    count: countUnet(unetSd21, 64, 77),
    trains: false,
    passes: both,
    checkpointing: true,
  },
  {
    name: 'unet-sd2.1-mmfs/64px',
    program: 'unet',
    config: { unet: unetSd21, mmfs: mmfsSd21 },
    inputs: {
      sample: { ...latentOf(1, 64, 4), grad: false },
      timesteps: timesteps(1),
      context: { shape: [1, 77, 1024] },
      image_mask: { shape: [1, 1], dtype: 'f32', fill: 'ones', grad: false },
      ...Object.fromEntries(mmfsSd21.value_sides.map((s, i) => [`map.${i}`, { shape: [1, 1, s, s, 1024] }])),
    },
    count: countUnet(unetSd21, 64, 77),
    trains: false,
    passes: ['forward'],
  },
  ...(['encode', 'decode'] as const).map(
    (half): Part => ({
      name: `vae-sd2.1/${half}512px`,
      program: 'vae',
      config: vaeSd21,
      settings: { half },
      inputs: half === 'encode' ? { image: latentOf(1, 512, 3) } : { latent: latentOf(1, 64, 4) },
      count: countVae(vaeSd21, 512, half),
      trains: false,
      passes: ['forward'],
    }),
  ),
].flatMap((p) => partCases(p as Part))
