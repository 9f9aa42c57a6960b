import test from 'ava'
import { Module, tensor } from 'deem'

const config = {
  hidden_size: 64,
  num_attention_heads: 2,
  intermediate_size: 64,
  num_hidden_layers: 2,
  vocab_size: 50,
  max_position_embeddings: 8,
  hidden_act: 'gelu',
}

const unet = {
  unet: {
    sample_size: 8,
    in_channels: 4,
    out_channels: 4,
    center_input_sample: false,
    flip_sin_to_cos: true,
    freq_shift: 0,
    down_block_types: ['CrossAttnDownBlock2D'],
    mid_block_type: 'UNetMidBlock2DCrossAttn',
    up_block_types: ['CrossAttnUpBlock2D'],
    block_out_channels: [32],
    layers_per_block: 1,
    downsample_padding: 1,
    mid_block_scale_factor: 1,
    act_fn: 'silu',
    norm_num_groups: 8,
    norm_eps: 1e-5,
    cross_attention_dim: 16,
    attention_head_dim: [2],
    use_linear_projection: true,
    only_cross_attention: false,
  },
  scheduler: {
    beta_start: 0.00085,
    beta_end: 0.012,
    beta_schedule: 'scaled_linear',
    num_train_timesteps: 1000,
    prediction_type: 'v_prediction',
    steps_offset: 1,
    set_alpha_to_one: false,
    clip_sample: false,
  },
}

// Serial: a synchronous call of another test would hold up the event loop that tells.
test.serial('a long call tells how far it is, in order, and never after its end', async (t) => {
  using m = await Module.create('unet', unet)
  const latent = tensor(new Float32Array(4 * 32 * 32 * 4), [4, 32, 32, 4])
  const context = tensor(new Float32Array(4 * 4 * 16), [4, 4, 16])
  const seen: [number, number][] = []
  await m.call(
    'sample',
    { latent, context },
    { steps: 60 },
    { grad: false, onProgress: (done, total) => seen.push([done, total]) },
  )
  const told = seen.length
  t.true(told > 0)
  for (const [i, [done, total]] of seen.entries()) {
    t.is(total, 60)
    t.true(done > (seen[i - 1]?.[0] ?? 0) && done <= 60)
  }
  await new Promise((done) => setTimeout(done, 120))
  t.is(seen.length, told)
})

test.serial('a call that does not count says nothing', async (t) => {
  using m = await Module.create('clip_text', config, { onProgress: () => t.fail() })
  t.true(m.parameters().length > 0)
})
