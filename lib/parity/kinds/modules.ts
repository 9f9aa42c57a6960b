/** `modules/*`: a part built alone through the public model API, outputs and gradients of inputs and parameters. */
import { Module } from '../../module.js'
import { ops } from '../../ops.js'
import type { Tensor } from '../../tensor.js'
import { below, type Case, type Json, leaf, nchw, need, nhwc, type Tensors } from '../case.js'
import type { Comparison } from '../compare.js'
import { check, type Program, type Timing } from '../program.js'

interface ModuleKind {
  /** Registered name of the model. */
  model: string
  /** Configuration from the case's config. */
  config: (c: Json) => object
  /** Outputs under their stored names from trainable inputs. */
  run: (m: Module, x: Tensors, config: Json) => Promise<Tensors>
  /** Splits a folder into cases; default one, without prefix. */
  prefixes?: (c: Json) => string[]
  /** No gradients are stored: run without a graph. */
  inference?: boolean
}

/** The config without the keys that only describe the case. */
function without(config: Json, ...keys: string[]): Json {
  return Object.fromEntries(
    Object.entries(config).filter(([key]) => ![...keys, 'note', 'cases', 'dropout'].includes(key)),
  )
}

const maps = (outputs: Tensors, names: string[]) => Object.fromEntries(names.map((n) => [n, nchw(need(outputs, n))]))

const kinds: Record<string, ModuleKind> = {
  convnext_encoder: {
    model: 'convnext',
    config: (c) => without(c),
    run: async (m, x) => {
      const y = await m.call('forward', { pixels: nhwc(need(x, 'pixels')) })
      return { tokens: need(y, 'tokens'), ...maps(y, ['c2', 'c3', 'c4', 'c5']) }
    },
  },
  mmfs: {
    model: 'mmfs',
    config: (c) => without(c),
    prefixes: (c) => (c['cases'] as Json[]).map((s) => String(s['prefix'])),
    run: (m, x) =>
      m.call('forward', {
        query: need(x, 'query'),
        reference_points: need(x, 'reference_points'),
        features: need(x, 'features'),
        mask: need(x, 'mask'),
      }),
  },
  perceiver_qknorm: { model: 'perceiver', config: (c) => without(c), run: perceive },
  perceiver_masked: { model: 'perceiver', config: (c) => without(c), run: perceive },
  text_head: {
    model: 'text_head',
    config: (c) => without(c),
    run: (m, x) => m.call('forward', { hidden: need(x, 'hidden') }),
  },
  clip_text_encoder: {
    model: 'clip_text',
    config: (c) => without(c),
    inference: true,
    run: (m, x) => m.call('forward', { input_ids: need(x, 'input_ids') }, {}, { grad: false }),
  },
  llama_mmfs: { model: 'llama', config: (c) => without(c, 'cached_prompt_length'), run: llama },
  unet: {
    model: 'unet',
    config: (c) => without(c),
    run: unet,
  },
  vae: {
    model: 'vae',
    config: (c) => without(c),
    inference: true,
    run: async (m, x) => {
      const options = { grad: false }
      const encoded = await m.call('encode', { image: nhwc(need(x, 'image')), eps: nhwc(need(x, 'eps')) }, {}, options)
      const decoded = await m.call('decode', { latent: nhwc(need(x, 'latent')) }, {}, options)
      return { ...maps(encoded, ['mean', 'logvar', 'sample_scaled']), decoded: nchw(need(decoded, 'image')) }
    },
  },
}

function perceive(m: Module, x: Tensors): Promise<Tensors> {
  return m.call('forward', { context: need(x, 'context'), context_mask: x['context_mask'] })
}

async function llama(m: Module, x: Tensors, config: Json): Promise<Tensors> {
  const embeds = need(x, 'embeds')
  const features = need(x, 'features')
  const full = await m.call(
    'forward',
    { embeds, features, keep: need(x, 'keep'), image_mask: need(x, 'image_mask') },
    { hidden_states: true },
  )
  const none = await m.call('forward', { embeds: embeds.detach(), keep: need(x, 'keep') }, {}, { grad: false })
  const out: Tensors = { ...full, no_image_hidden: need(none, 'last_hidden') }

  // A left-padded prompt, then one position at a time. The stored mask covers the prompt; its last row serves later ones.
  const length = Number(config['cached_prompt_length'])
  const total = embeds.shape[1] as number
  const batch = embeds.shape[0] as number
  const part = (t: Tensor, from: number, to: number) => ops.slice(t.detach(), 1, from, to)
  const mask = need(x, 'cached.image_mask')
  let keep = need(x, 'cached.keep')
  let state = await m.call(
    'forward',
    {
      embeds: part(embeds, 0, length),
      features: features.detach(),
      keep,
      image_mask: mask,
      positions: need(x, 'cached.positions'),
    },
    { use_cache: true },
    { grad: false },
  )
  out['cached.prompt_hidden'] = zeroPadding(need(state, 'last_hidden'), keep)
  const one = ops.full([batch, 1], 1, 'i64')
  for (let i = length; i < total; i++) {
    keep = ops.cat([keep, one], 1)
    const past = Object.fromEntries(
      Object.entries(state).flatMap(([name, t]) => (/^(key|value)\./.test(name) ? [[`past_${name}`, t]] : [])),
    )
    const position = ops.cast(ops.addScalar(ops.sum(ops.cast(keep, 'f32'), [1], true), -1), 'i64')
    state = await m.call(
      'forward',
      {
        embeds: part(embeds, i, i + 1),
        features: features.detach(),
        keep,
        image_mask: mask,
        positions: position,
        ...past,
      },
      { use_cache: true },
      { grad: false },
    )
    out[`cached.step${i - length}_hidden`] = need(state, 'last_hidden')
  }
  out['cached.key_layer0'] = need(state, 'key.0')
  out['cached.value_layer0'] = need(state, 'value.0')
  return out
}

/** Rows of padding need not match (fixtures' README): both sides are compared with zeros there. */
function zeroPadding(hidden: Tensor, keep: Tensor): Tensor {
  const [b, t] = keep.shape as [number, number]
  return ops.mul(hidden, ops.reshape(ops.cast(keep, hidden.dtype).to(hidden.device), [b, t, 1]))
}

async function unet(m: Module, x: Tensors): Promise<Tensors> {
  const context = need(x, 'text')
  const timesteps = need(x, 'timesteps')
  const features = Object.fromEntries(
    Object.entries(x).flatMap(([name, t]) =>
      /^map\d+$/.test(name) ? [[`map.${name.slice(3)}`, ops.permute(t, [0, 1, 3, 4, 2])]] : [],
    ),
  )
  const image_mask = need(x, 'mask')
  const sample = nhwc(need(x, 'sample'))
  const quiet = { grad: false }
  const plain = await m.call('forward', { sample: sample.detach(), timesteps, context: context.detach() }, {}, quiet)
  const full = await m.call('forward', { sample, timesteps, context, ...features, image_mask })
  const training = (prediction_type: string) => {
    const still = Object.fromEntries(Object.entries(features).map(([name, t]) => [name, t.detach()]))
    const inputs = {
      latent: nhwc(need(x, 'latent')),
      noise: nhwc(need(x, 'noise')),
      timesteps,
      context: context.detach(),
      ...still,
      image_mask,
    }
    return m.call('loss', inputs, { prediction_type }, quiet)
  }
  const epsilon = await training('epsilon')
  const velocity = await training('v_prediction')
  return {
    plain: nchw(need(plain, 'pred')),
    with_mmfs: nchw(need(full, 'pred')),
    noisy: nchw(need(epsilon, 'noisy')),
    noisy_pred: nchw(need(epsilon, 'pred')),
    loss_epsilon: need(epsilon, 'loss'),
    velocity_target: nchw(need(velocity, 'target')),
    loss_v_prediction: need(velocity, 'loss'),
  }
}

export function moduleRunner(
  name: string,
): ((c: Case, repeat: number, timing: Timing) => Promise<Comparison[]>) | undefined {
  const kind = kinds[name]
  if (!kind) return undefined
  return async (c, repeat, timing) => {
    using m = await Module.create(kind.model, kind.config(c.config), { dtype: c.dtype })
    await m.load(`${c.dir}/weights.safetensors`)
    const results: Comparison[] = []
    for (const prefix of kind.prefixes?.(c.config) ?? ['']) {
      const stored = {
        inputs: below(c.inputs, prefix),
        outputs: { ...below(c.outputs, prefix) },
        grads: below(c.grads, prefix),
      }
      const hidden = stored.outputs['cached.prompt_hidden']
      if (hidden) stored.outputs['cached.prompt_hidden'] = zeroPadding(hidden, need(stored.inputs, 'cached.keep'))
      let leaves: Tensors = {}
      const program: Program = {
        reset: () => {
          m.zeroGrad()
          leaves = Object.fromEntries(
            Object.entries(stored.inputs).map(([key, t]) => [
              key,
              leaf(t, c.dtype, !kind.inference && key in stored.grads),
            ]),
          )
        },
        forward: () => kind.run(m, leaves, c.config),
        gradient: (key) => (key.startsWith('w.') ? m.gradient(key.slice(2)) : (leaves[key]?.grad ?? null)),
        rule: 'module',
        gradientRule: 'module-gradient',
      }
      results.push(...(await check(program, stored, c.dtype, prefix, repeat, timing)))
    }
    return results
  }
}
