/** Whole models: a training step, a caption, a picture, tokens of a large language model. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import {
  Deem,
  type DeemTrainInputs,
  type Document,
  denseCaption,
  image,
  ops,
  readTensors,
  type Scene,
  Sprites,
  sceneAt,
  sceneBatch,
  sceneTokenizer,
  type Tensor,
  TextSession,
  tensor,
  text,
  tidy,
} from 'deem'
import { AdamW, trainStep } from 'deem/train'
import { parse } from 'yaml'
import { type DemoConfig, demoConfig } from '../../dist/demo/config.js'
import { deemConfig } from '../../dist/demo/parts.js'
import type { Case, Json, Precision, Settings } from '../case.js'
import { fixtures, permuteImages } from '../fixture.js'
import { enliven, scalar } from './parts.js'
import { disposeAll, type Subject } from './subject.js'

type Inputs = Record<string, Tensor>

function demo(): DemoConfig {
  return demoConfig().parse(
    parse(readFileSync(fileURLToPath(new URL('../../configs/nano.yaml', import.meta.url)), 'utf8')),
  )
}

async function nanoModel(precision: Precision): Promise<{ model: Deem; config: object }> {
  const config = deemConfig(demo(), sceneTokenizer(), 1)
  const model = await Deem.build(config, { seed: 5, dtype: precision })
  enliven(model)
  return { model, config }
}

/** Pictures, then their captions, and the other way round, as the alignment stage of the demo mixes them. */
async function nanoBatch(rows: number): Promise<Inputs> {
  const { model, seed } = demo()
  const source = { seed, split: 'train', vendors: ['twitter', 'google'] } as const
  const documents = Array.from({ length: rows }, (_, i): Document<Scene> => {
    const scene = sceneAt(source, i)
    const words = denseCaption(scene)
    return i % 2 === 1 ? [text(words, { loss: false }), image(scene)] : [image(scene), text(words)]
  })
  const { inputs } = sceneBatch(documents, await Sprites.load(), {
    tokenizer: sceneTokenizer(),
    imageTokens: model.image_tokens,
    maxLength: model.max_length,
  })
  return Object.fromEntries(Object.entries(inputs).map(([name, h]) => [name, tensor(h.data, h.shape)]))
}

/** Every draw of a step, so that both sides compute the same losses. */
function draws(images: number, side: number, channels: number): Inputs {
  const latent = [images, side, side, channels]
  return {
    sniffer_t: ops.randint([images], 0, 1000, 11, 0),
    img_t: ops.randint([images], 0, 1000, 11, 1),
    sniffer_noise: ops.randn(latent, 11, 2),
    img_noise: ops.randn(latent, 11, 3),
    sniffer_eps: ops.randn(latent, 11, 4),
    img_eps: ops.randn(latent, 11, 5),
    uncond_rand: ops.rand([images], 11, 6),
  }
}

async function fixtureModel(precision: Precision): Promise<{ model: Deem; config: object; inputs: Inputs }> {
  const dir = `${fixtures}model/deem_nano/`
  const { note: _n, dropout: _d, drop_path: _p, ...config } = JSON.parse(readFileSync(`${dir}config.json`, 'utf8'))
  const model = await Deem.build(config, { dtype: precision })
  await model.load(`${dir}weights.safetensors`)
  const { tensors } = await readTensors(`${dir}inputs.safetensors`)
  const latents = ['sniffer_noise', 'img_noise', 'sniffer_eps', 'img_eps']
  const nhwc = Object.fromEntries(
    latents.map((name) => [name, tidy(() => ops.contiguous(ops.permute(tensors[name] as Tensor, [0, 2, 3, 1])))]),
  )
  const plain = Object.fromEntries(['sniffer_t', 'img_t', 'uncond_rand'].map((name) => [name, tensors[name] as Tensor]))
  return { model, config, inputs: { ...permuteImages(tensors), ...nhwc, ...plain } }
}

async function trainSubject(c: Case, precision: Precision): Promise<Subject> {
  const nano = c.settings['model'] === 'nano'
  const source = nano ? await nanoModel(precision) : await fixtureModel(precision)
  const { model, config } = source
  let inputs: Inputs
  if ('inputs' in source) {
    inputs = (source as { inputs: Inputs }).inputs
  } else {
    const batch = await nanoBatch(c.settings['batch'] as number)
    const n = (batch['image_tensors'] as Tensor).shape[0] as number
    inputs = { ...batch, ...draws(n, 8, demo().model.vae.latent) }
    model.freeze('visual.head.mlp')
  }
  // Small, so that hundreds of steps on one batch stay near the start.
  const optimizer = new AdamW(model, { lr: 1e-6, weightDecay: 0.05, maxGradNorm: 1, betas: [0.9, 0.98], eps: 1e-8 })
  const starting = nano ? undefined : `${fixtures}model/deem_nano/weights.safetensors`
  let saved = false
  return {
    inputs,
    settings: {
      config: config as Settings,
      optimizer: { betas: [0.9, 0.98], eps: 1e-8, maxGradNorm: 1 },
      parameters: optimizer.parameters.map((p) => ({ ...p })),
    },
    weights: {
      key: JSON.stringify([c.name, precision, starting ?? '']),
      save: async (path) => {
        if (saved) throw new Error('the starting weights were already trained on')
        await model.save(path)
      },
    },
    results: async () => {
      saved = true
      const y = await trainStep(model, inputs as unknown as DeemTrainInputs, optimizer)
      return Object.fromEntries(Object.entries(y).map(([name, v]) => [name, scalar(v)]))
    },
    run: async (times) => {
      for (let i = 0; i < times; i++) await trainStep(model, inputs as unknown as DeemTrainInputs, optimizer)
    },
    [Symbol.dispose]: () => {
      optimizer.dispose()
      model.dispose()
      disposeAll(inputs)
    },
  }
}

const ids = (values: readonly number[]) => tensor(BigInt64Array.from(values, BigInt), [1, values.length])

function tokenIds(config: object): { bos: number; soi: number; image: number } {
  const t = (config as { special_token_dict: Record<string, number> }).special_token_dict
  return { bos: t['bos_token_id'] as number, soi: t['soi_token_id'] as number, image: t['image_token_id'] as number }
}

/** Writes greedily after what the session holds. */
async function write(
  session: TextSession,
  first: number | undefined,
  count: number,
  banned: number[],
): Promise<number[]> {
  const out: number[] = []
  let last = first
  for (let i = 0; i < count; i++) {
    const { ids } = await session.next(last === undefined ? undefined : [last], { banned })
    last = ids[0] as number
    out.push(last)
  }
  return out
}

async function captionSubject(c: Case, precision: Precision): Promise<Subject> {
  const { model, config } = await nanoModel(precision)
  const { bos, soi, image: slot } = tokenIds(config)
  const count = c.settings['tokens'] as number
  const slots = (config as { num_img_token: number }).num_img_token
  const prompt = [bos, soi, ...Array<number>(slots).fill(slot)]
  const text_ids = ids(prompt)
  const inputs: Inputs = {
    text_ids,
    attention_mask: ops.full([1, prompt.length], 1, 'i64'),
    num_image_per_seq: ops.full([1], 1, 'i64'),
    image_tensors: ops.rand([1, 64, 64, 3], 12, 0),
  }
  const caption = async () => {
    using session = await TextSession.open(model, inputs, { reserve: count })
    return await write(session, undefined, count, [slot, soi])
  }
  return {
    inputs,
    settings: { config: config as Settings, count, banned: [slot, soi] },
    weights: { key: JSON.stringify([c.name, precision]), save: (path) => model.save(path) },
    results: async () => ({ ids: ids(await caption()) }),
    run: async (times) => {
      for (let i = 0; i < times; i++) await caption()
    },
    [Symbol.dispose]: () => {
      model.dispose()
      disposeAll(inputs)
    },
  }
}

async function paintSubject(c: Case, precision: Precision): Promise<Subject> {
  const { model, config } = await nanoModel(precision)
  const { bos, soi, image: slot } = tokenIds(config)
  const { image_tokens, vae } = demo().model
  const row = [bos, ...Array.from({ length: 20 }, (_, i) => 10 + i), soi, ...Array<number>(image_tokens).fill(slot)]
  const inputs: Inputs = {
    text_ids: ids(row),
    attention_mask: ops.full([1, row.length], 1, 'i64'),
    num_image_per_seq: ops.full([1], 1, 'i64'),
    image_tensors: ops.full([1, 64, 64, 3], 0.5, 'f32'),
    which: ops.full([1], 0, 'i64'),
    latent: ops.randn([1, 8, 8, vae.latent], 13, 0),
  }
  const options = { steps: c.settings['steps'] as number, guidance: c.settings['guidance'] as number }
  const paint = () => model.paint(inputs as never, options)
  return {
    inputs,
    settings: { config: config as Settings },
    weights: { key: JSON.stringify([c.name, precision]), save: (path) => model.save(path) },
    results: async () => ({ picture: await paint() }),
    run: async (times) => {
      for (let i = 0; i < times; i++) (await paint()).dispose()
    },
    [Symbol.dispose]: () => {
      model.dispose()
      disposeAll(inputs)
    },
  }
}

/** A language model with the least that DEEM needs around it. */
function mostlyLlama(llm: Record<string, number>): object {
  const vocabulary = llm['vocab_size'] as number
  const perceiver = (from: number) => ({
    num_queries: 1,
    hidden_size: 8,
    encoder_hidden_size: from,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    cross_attention_frequency: 1,
    intermediate_size: 8,
    hidden_dropout_prob: 0,
    attention_probs_dropout_prob: 0,
  })
  const small = { block_out_channels: [8], layers_per_block: 1, norm_num_groups: 1 }
  return {
    llm,
    txt_vocab_size: vocabulary,
    seq_len: 8,
    special_token_dict: { bos_token_id: 1, eos_token_id: 2, pad_token_id: 0, soi_token_id: 3, image_token_id: 4 },
    num_img_token: 1,
    image_embed_dim: 8,
    cross_attention_frequency: llm['num_hidden_layers'],
    spatial_shapes: [1],
    grid_size: 2,
    image_size_in: 32,
    convnext: { depths: [1, 1, 1, 1], dims: [8, 8, 8, 8], embed_dim: 8, adapter_dim: 8 },
    visual_perceiver: perceiver(8),
    image_perceiver: perceiver(llm['hidden_size'] as number),
    sd: {
      image_size: 8,
      scheduler: {},
      vae: { ...small },
      unet: {
        ...small,
        in_channels: 4,
        out_channels: 4,
        cross_attention_dim: 8,
        attention_head_dim: [1],
        down_block_types: ['DownBlock2D'],
        up_block_types: ['UpBlock2D'],
      },
      mmfs: { attn_dim: 8, heads: 1, points: 1, grid: 8, value_sides: [8, 4, 2, 1], base_sides: [8] },
    },
    loss_weights: { txt: 1, img: 0, sniffer: 0 },
  }
}

async function decodeSubject(c: Case, precision: Precision): Promise<Subject> {
  const llm = c.settings['config'] as Record<string, number>
  const quantization = c.settings['quantization'] as Record<string, Json> | undefined
  const config = { ...mostlyLlama(llm), ...(quantization && { quantization }) }
  const model = await Deem.build(config, { seed: 6, dtype: precision })
  const prompt = Array.from({ length: c.settings['prompt'] as number }, (_, i) => 5 + i)
  const count = c.settings['tokens'] as number
  const inputs: Inputs = {
    text_ids: ids(prompt),
    attention_mask: ops.full([1, prompt.length], 1, 'i64'),
    num_image_per_seq: ops.full([1], 0, 'i64'),
  }
  const session = await TextSession.open(model, inputs, { reserve: count + 1 })
  // Every token of a pass costs one whole step, the first one too.
  const pass = async () => {
    const out = await write(session, 9, count, [3, 4])
    await session.truncate(prompt.length)
    return out
  }
  return {
    inputs,
    settings: { first: 9, banned: [3, 4] },
    // Weights in few bits mean nothing to the peers, which bring their own.
    ...(!quantization && {
      weights: { key: JSON.stringify([c.name, precision]), save: (path: string) => model.save(path) },
    }),
    results: async () => ({ ids: ids(await pass()) }),
    run: async (times) => {
      for (let i = 0; i < times; i++) await pass()
    },
    [Symbol.dispose]: () => {
      session.dispose()
      model.dispose()
      disposeAll(inputs)
    },
  }
}

const programs: Record<string, (c: Case, precision: Precision) => Promise<Subject>> = {
  deemTrain: trainSubject,
  deemCaption: captionSubject,
  deemPaint: paintSubject,
  decode: decodeSubject,
}

export async function wholeSubject(c: Case, precision: Precision): Promise<Subject> {
  const make = programs[c.program]
  if (!make) throw new Error(`there is no program '${c.program}'`)
  return make(c, precision)
}
