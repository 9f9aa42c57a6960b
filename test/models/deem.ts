// The whole model: which parameters learn from which loss, what freezing saves, and what the configuration changes.
import test from 'ava'
import {
  Deem,
  type DeemTrainInputs,
  type DeemTrainOptions,
  defaultDevice,
  Module,
  memory,
  modelKinds,
  type NameMatch,
  ops,
  type Tensor,
  type TypedArray,
} from 'deem'
import { collect } from '../_harness/memory.js'
import { compare, whole } from '../_harness/model.js'
import { nano, nanoConfig, nanoWeights } from '../_harness/nano.js'

/** Stored, and used by nobody: the projection of the contrastive head. */
const unused = /sniffer\.vision_model\.visual\.head\.mlp/
/** Softmax does not see what is added to all keys alike; a norm between does. */
const flat = /k_norm\.bias$|^image_decoder\..*\.key\.bias$/
/** The UNet's middle is one position wide here: whatever the query, all of softmax goes to the only key. */
const alone = /unet\.mid_block\.attentions\.0\..*attn1\.to_[qk]\.weight$/

const inLlm = (name: string) => /^mm_decoder\./.test(name) && !name.includes('llama_cross_attn')
const inVae = (name: string) => name.startsWith('visual_tokenizer.encoder.vae.')
const inUnet = (name: string) => name.startsWith('visual_tokenizer.encoder.unet.')
const inTrunk = (name: string) => /^visual_tokenizer\.sniffer\.(?!vision_model\.adapter)/.test(name)
const inHead = (name: string) => name.startsWith('text_decoder.head.')

/** Bytes of the smallest block: a cache line, or what a GPU hands out. */
const smallest = defaultDevice() === 'cuda' ? 512 : 64

/** What the engine counts for a tensor: whole smallest blocks, four sizes of block to each power of two. */
function bytesOf(shape: number[]): number {
  const bytes = 4 * shape.reduce((a, b) => a * b, 1)
  const step = Math.max(smallest, 2 ** Math.ceil(Math.log2(bytes)) / 8)
  return Math.ceil(bytes / step) * step
}

/** Gradients of one pass, by name, read and let go. */
async function gradientsOf(
  model: Deem,
  inputs: DeemTrainInputs,
  options: DeemTrainOptions = {},
): Promise<{ norms: Map<string, number>; held: number; losses: Record<string, number> }> {
  model.zeroGrad()
  const before = memory().current
  const losses = await model.trainStep(inputs, null, { options })
  const held = memory().current - before
  const norms = new Map<string, number>()
  for (const { name } of model.parameters()) {
    using gradient = model.gradient(name)
    if (gradient) norms.set(name, ops.norm(gradient))
  }
  model.zeroGrad()
  return { norms, held, losses }
}

const freezing: {
  name: string
  config?: object
  change?: (model: Deem) => unknown
  frozen: (name: string) => boolean
}[] = [
  { name: 'as configured', frozen: (n) => inLlm(n) || inUnet(n) },
  { name: 'freeze_vfm', config: { freeze_vfm: true }, frozen: (n) => inLlm(n) || inUnet(n) || inTrunk(n) },
  { name: 'no freeze_llm', config: { freeze_llm: false }, frozen: inUnet },
  { name: 'no freeze_dm', config: { freeze_dm: false }, frozen: inLlm },
  {
    name: 'all three frozen',
    config: { freeze_llm: true, freeze_vfm: true, freeze_dm: true },
    frozen: (n) => inLlm(n) || inUnet(n) || inTrunk(n),
  },
  { name: 'none frozen', config: { freeze_llm: false, freeze_dm: false }, frozen: () => false },
  {
    name: 'the resamplers frozen by hand',
    change: (m) => m.freeze('perceiver_resampler'),
    frozen: (n) => inLlm(n) || inUnet(n) || n.includes('perceiver_resampler'),
  },
  {
    name: 'nothing but the gates by hand',
    change: (m) => {
      m.freeze(/./)
      m.unfreeze('llama_cross_attn.gate')
    },
    frozen: (n) => !n.includes('llama_cross_attn.gate'),
  },
]

test.serial('every trainable parameter learns, frozen ones hold no gradient', async (t) => {
  const rows: { name: string; held: number; expected: number }[] = []
  for (const { name, config, change, frozen } of freezing) {
    const { model, inputs } = await nano(config)
    change?.(model)
    const trains = (n: string) => !(frozen(n) || inVae(n) || inHead(n))
    await gradientsOf(model, inputs) // what later passes keep is made by the first
    await collect()
    const { norms, held } = await gradientsOf(model, inputs)
    let expected = 0
    for (const p of model.parameters()) {
      const of = `${name}: ${p.name}`
      const norm = norms.get(p.name)
      t.is(p.trainable, trains(p.name) && !p.buffer, of)
      if (!p.trainable || unused.test(p.name)) {
        t.is(norm, undefined, of)
      } else {
        expected += bytesOf(p.shape)
        if (flat.test(p.name)) t.true((norm ?? Number.NaN) < 1e-6, `${of}: ${norm}`)
        else if (alone.test(p.name)) t.true((norm ?? Number.NaN) < 1e-6, `${of}: ${norm}`)
        else t.true((norm ?? 0) > 0, `${of}: ${norm}`)
      }
    }
    t.is(held, expected, `${name}: bytes held after the pass`)
    rows.push({ name, held, expected })
    for (const x of [model, ...Object.values(inputs)]) x?.dispose()
  }
  const heldBy = (name: string) => rows.find((row) => row.name === name)?.held ?? Number.NaN
  t.true(heldBy('as configured') < 0.5 * heldBy('none frozen'), JSON.stringify(rows))
})

test.serial('what is frozen keeps nothing for a backward pass', async (t) => {
  const graph = async (config: object, frozen: NameMatch = []) => {
    const { model, inputs } = await nano(config)
    model.freeze(frozen)
    await collect()
    const before = memory().current
    const { loss, ...others } = await model.forward(inputs)
    for (const x of Object.values(others)) x.dispose()
    const bytes = memory().current - before
    t.is(loss?.tracked, bytes > smallest)
    for (const x of [loss, model, ...Object.values(inputs)]) x?.dispose()
    return bytes
  }
  const free = await graph({ freeze_llm: false, freeze_dm: false })
  const frozen = await graph({ freeze_vfm: true })
  const seen = await graph({}, [/^visual_tokenizer\./, 'soi_token'])
  t.true(frozen < free && seen < 0.7 * free, `graphs of ${free}, ${frozen} and ${seen} bytes`)
  t.is(await graph({}, /./), smallest, 'nothing but the loss')
})

interface Which {
  name: string
  options: DeemTrainOptions
  losses: string[]
  /** Parameters that nothing reads then. */
  silent: RegExp
}

const onlyImage = /^(image_decoder\.|context_feat_proj\.)/
const onlySniffer = /^visual_tokenizer\.proj_i\./
/** The language model does not look at the finest map. */
const denoising = /^visual_tokenizer\.encoder\.mmfs_module\.|adapter_c2\./

const which: Which[] = [
  { name: 'all losses', options: {}, losses: ['loss_img', 'loss_sniffer', 'loss_txt'], silent: /^$/ },
  { name: 'feedback off', options: { feedback: false }, losses: ['loss_img', 'loss_txt'], silent: onlySniffer },
  {
    name: 'image loss off',
    options: { image_loss: false },
    losses: ['loss_sniffer', 'loss_txt'],
    silent: onlyImage,
  },
  {
    name: 'text alone',
    options: { feedback: false, image_loss: false },
    losses: ['loss_txt'],
    silent: new RegExp([onlyImage, onlySniffer, denoising].map((r) => r.source).join('|')),
  },
]

for (const { name, options, losses: expected, silent } of which)
  test.serial(`${name}: only what takes part is returned and learns`, async (t) => {
    const { model, inputs } = await nano()
    const { norms, losses } = await gradientsOf(model, inputs, options)
    const { losses: full } = await gradientsOf(model, inputs)
    t.deepEqual(Object.keys(losses).sort(), ['loss', ...expected])
    for (const loss of expected) t.is(losses[loss], full[loss], `${loss} does not depend on the others`)
    for (const p of model.parameters())
      if (p.trainable && !unused.test(p.name)) t.is(norms.has(p.name), !silent.test(p.name), p.name)
    model.dispose()
  })

test.serial('losses add up with their weights, and gradients are linear in them', async (t) => {
  const { model, inputs } = await nano()
  const names = [
    'context_feat_proj.weight',
    'visual_tokenizer.proj_i.weight',
    'visual_tokenizer.pos_proj.weight',
    'soi_token',
  ]
  const pass = async (options: DeemTrainOptions) => {
    model.zeroGrad()
    const losses = await model.trainStep(inputs, null, { options })
    const gradients = names.map((name) => model.gradient(name)?.toFloat32() ?? new Float32Array())
    return { losses, gradients }
  }
  const only = (w: [number, number, number]) => ({ weight_txt: w[0], weight_img: w[1], weight_sniffer: w[2] })
  const units = [await pass(only([1, 0, 0])), await pass(only([0, 1, 0])), await pass(only([0, 0, 1]))]
  const parts = units.map(({ losses }) => losses['loss'] as number)
  for (const [i, name] of ['loss_txt', 'loss_img', 'loss_sniffer'].entries())
    t.is(parts[i], units[0]?.losses[name], `${name} alone`)
  for (const weights of [
    [1, 5, 5],
    [0.5, 2, 0.25],
    [0, 0, 0],
    [1, -1, 0],
  ] as [number, number, number][]) {
    const { losses, gradients } = await pass(only(weights))
    const want = parts.reduce((sum, part, i) => sum + part * (weights[i] as number), 0)
    compare(t, `loss with weights ${weights}`, [losses['loss'] as number], [want], 1e-6)
    for (const [k, got] of gradients.entries()) {
      const sum = Float64Array.from(got, (_, at) =>
        units.reduce((s, { gradients: g }, i) => s + ((g[k] as Float32Array)[at] ?? 0) * (weights[i] as number), 0),
      )
      compare(t, `gradient of ${names[k]} with weights ${weights}`, got, sum, 1e-5)
    }
  }
  const { model: configured } = await nano({ loss_weights: { txt: 0.5, img: 2, sniffer: 0.25 } })
  const { loss } = await configured.trainStep(inputs, null)
  t.is(loss, (await pass(only([0.5, 2, 0.25]))).losses['loss'])
})

/** One row with three pictures in one document: soi and slots after a bos, an id between them. */
function threePictures(inputs: DeemTrainInputs): DeemTrainInputs {
  const picture = [512, 513, 513, 513, 513, 513]
  const ids = [1, ...picture, 40, ...picture, 41, ...picture, 42, 2]
  const first = (x: Tensor | undefined) => ops.contiguous(ops.slice(x as Tensor, 0, 0, 3))
  const rest = Object.entries(inputs).filter(([name]) => !/^(text_ids|attention_mask|n.*_.*)$/.test(name))
  return {
    ...Object.fromEntries(rest.map(([name, x]) => [name, first(x)])),
    text_ids: whole(ids, [1, ids.length]),
    attention_mask: whole(Array(ids.length).fill(1), [1, ids.length]),
    num_image_per_seq: whole([3], [1]),
    nearest_bos_idxs: whole([0, 0, 0], [3]),
  }
}

test.serial('compat: three differences, each by itself', async (t) => {
  const { model: official, inputs } = await nano({ compat: 'official' })
  const { model: paper } = await nano({ compat: 'paper' })
  const details = async (model: Deem, x: DeemTrainInputs, options: DeemTrainOptions = {}) => {
    const y = await model.forward(x, { details: true, ...options }, { grad: false })
    return (name: string): TypedArray => (y[name] as Tensor).read()
  }
  const a = await details(official, inputs)
  const b = await details(paper, inputs)
  const once = await details(official, inputs, { second_normalization: false })
  t.deepEqual(b('loss_txt'), a('loss_txt'), 'the text loss is one')

  // Timesteps of the consistency loss.
  const drawn = inputs.sniffer_t?.read() as BigInt64Array
  t.deepEqual(b('sniffer_timesteps'), drawn)
  const mapped = BigInt64Array.from(drawn, (v) => BigInt(Math.round((Number(v) - 500) * 0.6 + 500)))
  t.deepEqual(a('sniffer_timesteps'), mapped)
  t.notDeepEqual(b('loss_sniffer'), a('loss_sniffer'))
  const same = await details(paper, { ...inputs, sniffer_t: whole([...mapped].map(Number), [mapped.length]) })
  t.deepEqual(same('loss_sniffer'), a('loss_sniffer'), 'nothing else in it differs')

  // Pictures of the image loss, normalised once or twice.
  t.notDeepEqual(b('img_latent'), a('img_latent'))
  t.deepEqual(b('img_latent'), once('img_latent'))
  t.deepEqual(b('loss_img'), once('loss_img'), 'documents of at most two pictures have one history')

  // Pictures the image decoder looks back at.
  const long = threePictures(inputs)
  const nearest = await details(official, long, { second_normalization: false })
  const every = await details(paper, long)
  t.deepEqual([...nearest('mmfs_mask')], [0n, 1n, 1n])
  t.deepEqual([...every('mmfs_mask')], [0n, 0n, 1n, 0n, 1n, 1n])
  t.notDeepEqual(every('loss_img'), nearest('loss_img'))
  t.deepEqual(every('context_features'), nearest('context_features'))
})

const config = nanoConfig() as Record<string, Record<string, unknown>>
const sd = config['sd'] as Record<string, object>

/** Every registered part out of the whole model's own configuration, and where its parameters lie there. */
const parts: Record<string, { config: object; prefix?: string }> = {
  deem: { config, prefix: '' },
  convnext: { config: config['convnext'] as object, prefix: 'visual_tokenizer.sniffer.' },
  perceiver: { config: config['visual_perceiver'] as object, prefix: 'visual_tokenizer.perceiver_resampler.' },
  llama: {
    config: {
      ...config['llm'],
      vocab_size: config['txt_vocab_size'],
      image_embed_dim: config['image_embed_dim'],
      cross_attention_frequency: config['cross_attention_frequency'],
      spatial_shapes: config['spatial_shapes'],
    },
    prefix: 'mm_decoder.',
  },
  text_head: {
    config: { hidden_size: 64, txt_vocab_size: config['txt_vocab_size'], orig_txt_vocab_size: 512 },
    prefix: 'text_decoder.',
  },
  vae: { config: sd['vae'] as object, prefix: 'visual_tokenizer.encoder.vae.' },
  unet: {
    config: {
      unet: sd['unet'],
      mmfs: { ...sd['mmfs'], feature_dim: config['image_embed_dim'] },
      scheduler: sd['scheduler'],
    },
    prefix: 'visual_tokenizer.encoder.',
  },
  mmfs: {
    config: {
      d_query: 64,
      d_value: 32,
      d_out: 64,
      value_width: 32,
      n_heads: 4,
      n_points: 4,
      level_sides: config['spatial_shapes'],
      base_side: 16,
      max_images: 50,
    },
  },
  clip_text: {
    config: {
      hidden_size: 8,
      num_attention_heads: 2,
      intermediate_size: 8,
      num_hidden_layers: 1,
      vocab_size: 5,
      max_position_embeddings: 4,
      hidden_act: 'gelu',
    },
  },
  contrastive: { config: { feature_dim: 8, vocab_size: 5, embed_dim: 4, pad_token_id: 0 } },
}

/** Kinds that are rules without parameters. */
const rules = ['sampler']

test('every registered kind is built alone, with the names and weights it has in the whole', async (t) => {
  t.deepEqual([...Object.keys(parts), ...rules].sort(), modelKinds().sort())
  using all = await Module.create('deem', config)
  await all.load(nanoWeights)
  for (const [kind, part] of Object.entries(parts)) {
    using m = await Module.create(kind, part.config)
    t.true(m.parameters().length > 0, kind)
    if (part.prefix === undefined) continue
    // The denoiser holds the VAE beside what the kind `unet` is.
    const { missing } = await m.load(nanoWeights, { prefix: part.prefix, strict: false })
    t.deepEqual(missing, [], kind)
    for (const { name, shape } of m.parameters()) {
      using own = m.read(name)
      using whole = all.read(part.prefix + name)
      t.deepEqual(own.shape, shape)
      t.deepEqual(own.read(), whole.read(), `${kind}: ${name}`)
    }
  }
})

test('models of one seed are equal, of another differ, and dtype narrows them', async (t) => {
  const build = (options: object) => Deem.build(config, options)
  using a = await build({ seed: 3 })
  using b = await build({ seed: 3 })
  using c = await build({ seed: 4 })
  using narrow = await build({ seed: 3, dtype: 'bf16' })
  const read = (m: Module, name: string) => {
    using value = m.read(name)
    return value.toFloat32()
  }
  let differing = 0
  for (const { name, buffer } of a.parameters()) {
    t.deepEqual(read(a, name), read(b, name), name)
    if (!buffer && read(a, name).some((v, i) => v !== read(c, name)[i])) differing++
    compare(t, name, read(narrow, name), read(a, name), 2 ** -8)
  }
  t.true(differing > 500, `${differing} parameters depend on the seed`)
  t.true(narrow.parameters().every((p) => p.dtype === 'bf16'))
})

test('strided inputs are as good as plain ones', async (t) => {
  const { model, inputs } = await nano()
  const loss = async (x: DeemTrainInputs) => (await model.trainStep(x, null))['loss']
  const want = await loss(inputs)
  const strided = (x: Tensor) => {
    const axes = x.shape.map((_, i) => i).reverse()
    return ops.permute(ops.contiguous(ops.permute(x, axes)), axes)
  }
  for (const [name, x] of Object.entries(inputs))
    t.is(await loss({ ...inputs, [name]: strided(x as Tensor) }), want, name)
  // One number seen 78 times: what follows it in memory is not the mask.
  const keep = ops.broadcastTo(whole([1], [1, 1]), [2, 39])
  const full = whole(Array(78).fill(1), [2, 39])
  t.is(await loss({ ...inputs, attention_mask: keep }), await loss({ ...inputs, attention_mask: full }))
})
