/** The configurations of the models, from the demo's few sizes. All widths that have to agree come from one number. */
import type { Tokenizer } from '../tokenizer/index.js'
import type { DemoConfig } from './config.js'

type Json = Record<string, unknown>

const schedule: Json = {
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: 'scaled_linear',
  num_train_timesteps: 1000,
  prediction_type: 'v_prediction',
  steps_offset: 1,
  set_alpha_to_one: false,
  clip_sample: false,
}

export function vaeConfig({ model: { vae } }: DemoConfig, scaling_factor = 1): Json {
  return {
    in_channels: 3,
    out_channels: 3,
    down_block_types: vae.channels.map(() => 'DownEncoderBlock2D'),
    up_block_types: vae.channels.map(() => 'UpDecoderBlock2D'),
    block_out_channels: vae.channels,
    layers_per_block: vae.layers,
    act_fn: 'silu',
    latent_channels: vae.latent,
    norm_num_groups: vae.groups,
    sample_size: 64,
    scaling_factor,
  }
}

/** Pixels per latent along one side. */
export function vaeFactor({ model: { vae } }: DemoConfig): number {
  return 2 ** (vae.channels.length - 1)
}

export function unetConfig(config: DemoConfig): Json {
  const { denoiser, vae, width } = config.model
  const n = denoiser.channels.length
  return {
    sample_size: 64 / vaeFactor(config),
    in_channels: vae.latent,
    out_channels: vae.latent,
    center_input_sample: false,
    flip_sin_to_cos: true,
    freq_shift: 0,
    down_block_types: Array(n).fill('CrossAttnDownBlock2D'),
    mid_block_type: 'UNetMidBlock2DCrossAttn',
    up_block_types: Array(n).fill('CrossAttnUpBlock2D'),
    block_out_channels: denoiser.channels,
    layers_per_block: denoiser.layers,
    downsample_padding: 1,
    mid_block_scale_factor: 1,
    act_fn: 'silu',
    norm_num_groups: denoiser.groups,
    norm_eps: 1e-5,
    cross_attention_dim: width,
    attention_head_dim: denoiser.heads,
    use_linear_projection: true,
    only_cross_attention: false,
  }
}

/** The denoiser alone, conditioned on text, as it is trained before DEEM is put together. */
export function denoiserConfig(config: DemoConfig): Json {
  return { unet: unetConfig(config), scheduler: schedule }
}

export function textEncoderConfig(config: DemoConfig, vocab_size: number): Json {
  const { denoiser, width, image_tokens } = config.model
  return {
    vocab_size,
    hidden_size: width,
    intermediate_size: 2 * width,
    num_hidden_layers: denoiser.text_layers,
    num_attention_heads: denoiser.text_heads,
    max_position_embeddings: image_tokens,
    hidden_act: 'gelu',
    layer_norm_eps: 1e-5,
  }
}

export function encoderConfig({ model: { encoder, width } }: DemoConfig): Json {
  return { ...encoder, embed_dim: 8, adapter_dim: width }
}

/** Sides of the encoder's four maps for 64 px pictures. */
export function mapSides({ model: { encoder } }: DemoConfig): number[] {
  return [1, 2, 4, 8].map((s) => 64 / encoder.patch_size / s)
}

export function deemConfig(config: DemoConfig, tokenizer: Tokenizer, scaling_factor: number): Json {
  const { width, image_tokens, resampler, image_resampler, llm, mmfs, denoiser, max_length } = config.model
  const sides = mapSides(config)
  const latent = 64 / vaeFactor(config)
  const { ids } = tokenizer
  const perceiver = (sizes: typeof resampler, from: number, qk: boolean): Json => ({
    num_queries: image_tokens,
    hidden_size: width,
    encoder_hidden_size: from,
    num_hidden_layers: sizes.layers,
    num_attention_heads: sizes.heads,
    cross_attention_frequency: 1,
    intermediate_size: sizes.intermediate,
    qk_normalization: qk,
    layer_norm_eps: 1e-12,
    hidden_dropout_prob: 0,
    attention_probs_dropout_prob: 0,
  })
  return {
    compat: 'paper',
    llm: {
      hidden_size: width,
      num_attention_heads: llm.heads,
      intermediate_size: llm.intermediate,
      num_hidden_layers: llm.layers,
      vocab_size: tokenizer.baseVocabSize,
      rms_norm_eps: 1e-5,
      max_position_embeddings: max_length,
      mmfs_heads: mmfs.heads,
      mmfs_points: mmfs.points,
      mmfs_base_side: sides[2],
      mmfs_max_images: 10,
    },
    txt_vocab_size: tokenizer.vocabSize,
    seq_len: max_length,
    special_token_dict: {
      bos_token_id: ids.bos,
      eos_token_id: ids.eos,
      pad_token_id: ids.pad,
      soi_token_id: ids.soi,
      image_token_id: ids.image,
    },
    num_img_token: image_tokens,
    image_embed_dim: width,
    cross_attention_frequency: llm.cross_attention_frequency,
    spatial_shapes: sides.slice(1),
    grid_size: sides[2],
    image_size_in: 64,
    convnext: encoderConfig(config),
    visual_perceiver: perceiver(resampler, width, true),
    image_perceiver: perceiver(image_resampler, width, false),
    sd: {
      image_size: 64,
      scheduler: schedule,
      vae: vaeConfig(config, scaling_factor),
      unet: unetConfig(config),
      mmfs: {
        attn_dim: width,
        heads: mmfs.heads,
        points: mmfs.points,
        value_sides: sides,
        base_sides: denoiser.channels.map((_, i) => latent / 2 ** i),
        grid: latent,
        max_images: 10,
      },
    },
    uncond_prob: 0.1,
    loss_weights: { txt: 1, img: 5, sniffer: 5 },
    freeze_llm: true,
    freeze_vfm: false,
    freeze_dm: true,
  }
}
