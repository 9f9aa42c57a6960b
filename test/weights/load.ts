// Models from weights as people have them; the exact values of the stored layouts are judged by parity.
import { cpSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { Deem, type DeemPieces, loadDeem, mapTensors, ops, readTensors, type Tensor, tensor, writeTensors } from 'deem'
import {
  copyOf,
  editJson,
  editWeights,
  emptyFolder,
  type Json,
  json,
  layout,
  layouts,
  removeCopies,
  wholeConfig,
} from '../_harness/hf-layout.js'
import { nano, nanoWeights } from '../_harness/nano.js'

test.after.always(removeCopies)

const pieces = (change: DeemPieces = {}): DeemPieces => ({
  config: wholeConfig(),
  llama: layout('llama'),
  stableDiffusion: layout('stable_diffusion'),
  openClip: layout('open_clip'),
  ...change,
})
const values = (m: Deem, name: string) => m.read(name).toFloat32()
const same = (a: Deem, b: Deem, names: (name: string) => boolean = () => true) =>
  a
    .parameters()
    .filter(({ name }) => names(name))
    .filter(({ name }) => Buffer.compare(bytes(a.read(name)), bytes(b.read(name))) !== 0)
    .map(({ name }) => name)
const bytes = (x: Tensor) => {
  const a = x.read()
  return new Uint8Array(a.buffer, a.byteOffset, a.byteLength)
}

test('a folder of ours in f32 gives the stored model, which answers as the reference does', async (t) => {
  const folder = copyOf('deem')
  rmSync(join(folder, 'pytorch_model.bin'))
  cpSync(nanoWeights, join(folder, 'model.safetensors'))
  const { model, config, report, tokenizer } = await loadDeem(folder)
  t.is(report, undefined)
  t.is(tokenizer, undefined)
  t.deepEqual(config, wholeConfig())
  t.deepEqual(model.config, config)
  const stored = await nano()
  t.deepEqual(same(model, stored.model), [])
  const loss = async (m: Deem) => (await m.forward(stored.inputs, {}, { grad: false }))['loss']?.item()
  t.is(await loss(model), await loss(stored.model))
})

test('the dtype of the parameters is as asked, whatever the files have', async (t) => {
  for (const dtype of ['f16', 'bf16'] as const) {
    const { model } = await loadDeem(layout('deem'), { dtype })
    t.true(model.parameters().every((p) => p.dtype === dtype))
  }
  // f16 files in an f16 model: the same bits.
  const { model } = await loadDeem(layout('deem'), { dtype: 'f16' })
  const { tensors } = await mapTensors(join(layout('deem'), 'pytorch_model.bin'))
  for (const { name } of model.parameters())
    t.is(Buffer.compare(bytes(model.read(name)), bytes(tensors[name] as Tensor)), 0, name)
})

test('a tokenizer in a DEEM folder comes along', async (t) => {
  const folder = copyOf('deem')
  cpSync(join(layout('llama'), 'tokenizer.model'), join(folder, 'tokenizer.model'))
  const { tokenizer } = await loadDeem(folder)
  t.is(tokenizer?.ids.soi, 512)
  t.is(tokenizer?.ids.pad, 511)
})

test('from pieces: old vocabulary rows from the file, new ones fresh and silent in the first head', async (t) => {
  const { model, tokenizer } = await loadDeem(pieces(), { seed: 7 })
  using fresh = await Deem.build(wholeConfig(), { seed: 7 })
  using other = await Deem.build(wholeConfig(), { seed: 8 })
  const table = 'mm_decoder.embed_tokens.weight'
  const fresh6 = values(fresh, table).slice(512 * 64)
  t.deepEqual(values(model, table).slice(512 * 64), fresh6)
  t.notDeepEqual(values(other, table).slice(512 * 64), fresh6)
  const { tensors } = await readTensors(join(layout('llama'), 'model-00001-of-00002.safetensors'))
  t.deepEqual(values(model, table).slice(0, 512 * 64), tensors['model.embed_tokens.weight']?.toFloat32())
  t.true(
    values(model, 'text_decoder.head.weight')
      .slice(512 * 64)
      .every((v) => v === 0),
  )
  t.deepEqual(
    values(model, 'text_decoder.head.bias'),
    Float32Array.from({ length: 518 }, (_, i) => (i < 512 ? 0 : -100)),
  )
  t.true(values(model, 'text_decoder.head_new.bias').every((v) => v === 95))
  t.is(tokenizer?.vocabSize, 518)
  // What no piece holds is what a fresh model has.
  const pieced =
    /llama_cross_attn|head_new|perceiver_resampler|adapter_|mmfs_module|r\.proj_[ti]\.|soi_token|context_feat/
  t.deepEqual(
    same(model, fresh, (name) => pieced.test(name)),
    [],
  )
})

test('any piece may be left out, and the sizes of those given need not be repeated', async (t) => {
  const whole = wholeConfig()
  const {
    llm,
    convnext,
    sd,
    txt_vocab_size: _size,
    special_token_dict: _tokens,
    ...rest
  } = whole as Record<string, Json>
  const mmfs = Object.fromEntries(Object.entries(llm as Json).filter(([key]) => /mmfs|position/.test(key)))
  const config = {
    ...rest,
    llm: mmfs,
    convnext: { adapter_dim: convnext?.['adapter_dim'] },
    sd: { mmfs: sd?.['mmfs'], image_size: sd?.['image_size'] },
  }
  const full = await loadDeem(pieces())
  const derived = await loadDeem(pieces({ config }))
  t.deepEqual(same(full.model, derived.model), [])
  // Without a pad token in the config, that of LLaMA's own.
  t.is((derived.config['special_token_dict'] as Json)['pad_token_id'], 0)
  const bare = await loadDeem(pieces({ config, llama: layout('llama_bin_fp16') }))
  t.is(bare.tokenizer, undefined)
  t.is((bare.config['special_token_dict'] as Json)['image_token_id'], 513)
  for (const piece of ['llama', 'stableDiffusion', 'openClip'] as const) {
    const { model } = await loadDeem({ config: whole, [piece]: pieces()[piece] })
    using fresh = await Deem.build(whole)
    const changed = same(model, fresh)
    t.true(changed.length > 10, piece)
    const own = {
      llama: /^mm_decoder|^text_dec/,
      stableDiffusion: /encoder\.(unet|vae)|neg_prompt/,
      openClip: /sniffer/,
    }
    t.true(
      changed.every((name) => own[piece].test(name)),
      piece,
    )
  }
})

test('names and shapes of other ages: VAE attention, tied heads, encoders without a prefix', async (t) => {
  const { model: wanted } = await loadDeem(pieces())
  const sd = copyOf('stable_diffusion')
  await editWeights(join(sd, 'vae'), 'diffusion_pytorch_model', (all) => {
    const modern = { query: 'to_q', key: 'to_k', value: 'to_v', proj_attn: 'to_out.0' }
    for (const [name, x] of Object.entries(all))
      for (const [old, now] of Object.entries(modern))
        if (name.includes(`attentions.0.${old}.`)) {
          delete all[name]
          all[name.replace(old, now)] = x
        }
  })
  await editWeights(join(sd, 'text_encoder'), 'model', (all) => {
    for (const [name, x] of Object.entries(all)) {
      delete all[name]
      all[name.replace('text_model.', '')] = x
    }
  })
  t.deepEqual(same((await loadDeem(pieces({ stableDiffusion: sd }))).model, wanted), [])

  const convolutions = copyOf('stable_diffusion')
  await editWeights(join(convolutions, 'vae'), 'diffusion_pytorch_model', (all) => {
    for (const [name, x] of Object.entries(all))
      if (/attentions\.0\.(query|key|value|proj_attn)\.weight/.test(name))
        all[name] = ops.reshape(x, [...x.shape, 1, 1])
  })
  t.deepEqual(same((await loadDeem(pieces({ stableDiffusion: convolutions }))).model, wanted), [])

  const tied = copyOf('llama')
  editJson(join(tied, 'config.json'), (c) => ({ ...c, tie_word_embeddings: true }))
  await editWeights(tied, 'model', (all) => delete all['lm_head.weight'])
  const { model } = await loadDeem(pieces({ llama: tied }))
  t.deepEqual(
    values(model, 'text_decoder.head.weight').slice(0, 512 * 64),
    values(model, 'mm_decoder.embed_tokens.weight').slice(0, 512 * 64),
  )
})

test('configurations of newer libraries: what changes nothing is taken, what would is refused', async (t) => {
  const sd = copyOf('stable_diffusion')
  const add = (file: string, more: Json) => editJson(join(sd, file), (c) => ({ ...c, ...more }))
  add('unet/config.json', {
    conv_in_kernel: 3,
    addition_embed_type: null,
    transformer_layers_per_block: 1,
    dropout: 0.0,
  })
  add('vae/config.json', { latents_mean: null, use_quant_conv: true, scaling_factor: 0.2 })
  add('scheduler/scheduler_config.json', { timestep_spacing: 'leading', rescale_betas_zero_snr: false })
  const llama = copyOf('llama')
  editJson(join(llama, 'config.json'), ({ rope_scaling: _none, ...c }) => ({
    ...c,
    head_dim: 32,
    rope_parameters: { rope_type: 'default', rope_theta: 20000 },
  }))
  const { sd: _sd, ...config } = wholeConfig() as Record<string, Json>
  const { mmfs, image_size } = _sd as Json
  const loaded = await loadDeem(pieces({ stableDiffusion: sd, llama, config: { ...config, sd: { mmfs, image_size } } }))
  t.is(((loaded.config['sd'] as Json)['vae'] as Json)['scaling_factor'], 0.2)
  t.is((loaded.config['llm'] as Json)['rope_theta'], 20000)
  add('unet/config.json', { transformer_layers_per_block: 2 })
  await t.throwsAsync(loadDeem(pieces({ stableDiffusion: sd })), {
    code: 'ERR_CONFIG',
    message: /transformer_layers_per_block/,
  })
})

test('ids as old and new LLaMAs name them: -1 for none, lists of stops', async (t) => {
  const { special_token_dict: _tokens, ...config } = wholeConfig()
  for (const name of ['llama', 'llama_bin_fp16']) {
    const llama = copyOf(name)
    editJson(join(llama, 'config.json'), (c) => ({ ...c, pad_token_id: -1, eos_token_id: [2, 7] }))
    const { config: built } = await loadDeem({ llama, config })
    const { eos_token_id, pad_token_id } = built['special_token_dict'] as Json
    t.deepEqual([eos_token_id, pad_token_id], [2, 0], name)
  }
})

test('open_clip as a safetensors file named by itself', async (t) => {
  const folder = emptyFolder()
  cpSync(layout('open_clip'), folder, { recursive: true })
  await editWeights(folder, 'some_name', () => undefined)
  const { model } = await loadDeem({ config: wholeConfig(), openClip: join(folder, 'some_name.safetensors') })
  const { model: wanted } = await loadDeem({ config: wholeConfig(), openClip: layout('open_clip') })
  t.deepEqual(same(model, wanted), [])
})

test('the empty prompt is cut and padded to what the encoder takes', async (t) => {
  // A tokenizer that names no length, as some are saved, and its tokens as objects.
  const sd = copyOf('stable_diffusion')
  editJson(join(sd, 'tokenizer/tokenizer_config.json'), (c) => ({
    ...c,
    model_max_length: 1e30,
    pad_token: { content: '!', __type: 'AddedToken' },
  }))
  const { model } = await loadDeem(pieces({ stableDiffusion: sd }))
  const { tensors } = await readTensors(join(layouts, 'expected.safetensors'))
  const got = values(model, 'image_decoder.neg_prompt_embeds')
  const want = tensors['negative_prompt_embeds']?.toFloat32() as Float32Array
  t.true(got.every((v, i) => Math.abs(v - (want[i] as number)) < 1e-4))
})

test('a prompt tokenizer that is stored as tokenizer.json alone', async (t) => {
  const sd = copyOf('stable_diffusion')
  const place = join(sd, 'tokenizer')
  const added = (content: string, id: number) => ({ id, content, special: true, normalized: false })
  const [sep, cls] = [
    ['<|endoftext|>', 513],
    ['<|startoftext|>', 512],
  ] as const
  const whole = {
    added_tokens: [added('!', 0), added(...cls), added(...sep)],
    normalizer: { type: 'Lowercase' },
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false },
    post_processor: { type: 'RobertaProcessing', sep, cls, trim_offsets: false, add_prefix_space: false },
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      vocab: json(join(place, 'vocab.json')),
      merges: [],
      unk_token: sep[0],
      end_of_word_suffix: '</w>',
    },
  }
  for (const name of ['vocab.json', 'merges.txt']) rmSync(join(place, name))
  writeFileSync(join(place, 'tokenizer.json'), JSON.stringify(whole))
  const [a, b] = [await loadDeem(pieces({ stableDiffusion: sd })), await loadDeem(pieces())]
  t.deepEqual(same(a.model, b.model), [])
  writeFileSync(join(place, 'tokenizer.json'), '{"model": {}}')
  await t.throwsAsync(loadDeem(pieces({ stableDiffusion: sd })), { code: 'ERR_FORMAT', message: /tokenizer\.json/ })
})

test('progress counts tensors and ends with all of them', async (t) => {
  const told: [number, number][] = []
  const { model } = await loadDeem(layout('deem'), { onProgress: (done, total) => told.push([done, total]) })
  const all = model.parameters().length
  t.deepEqual(told.at(-1), [all, all])
  t.true(told.every(([done], i) => done > 0 && (i === 0 || done >= (told[i - 1] as [number, number])[0])))
})

test('strict: false lists what does not fit and leaves it fresh', async (t) => {
  const folder = copyOf('deem')
  await editWeights(folder, 'model', (all) => {
    delete all['context_feat_proj.bias']
    all['soi_token'] = ops.full([1, 63], 1, 'f32')
    all['visual_tokenizer.proj_i.bias'] = tensor(new BigInt64Array(32))
    all['extra.weight'] = ops.full([1], 1, 'f32')
  })
  const { model, report } = await loadDeem(folder, { strict: false, seed: 3 })
  t.deepEqual(report, {
    missing: ['context_feat_proj.bias'],
    unexpected: ['extra.weight'],
    misshapen: [
      { name: 'visual_tokenizer.proj_i.bias', shape: [32], stored: [32], dtype: 'i64' },
      { name: 'soi_token', shape: [1, 64], stored: [1, 63], dtype: 'f32' },
    ],
  })
  using fresh = await Deem.build(wholeConfig(), { seed: 3 })
  for (const name of ['context_feat_proj.bias', 'soi_token', 'visual_tokenizer.proj_i.bias'])
    t.deepEqual(values(model, name), values(fresh, name))
  t.deepEqual((await loadDeem(layout('deem'), { strict: false })).report, {
    missing: [],
    unexpected: [],
    misshapen: [],
  })
})

test('what no file holds starts as in a model that was built, also rounded and in few bits', async (t) => {
  const gone = 'mm_decoder.layers.0.mlp.up_proj.weight'
  const folder = copyOf('deem')
  await editWeights(folder, 'model', (all) => {
    delete all[gone]
  })
  for (const options of [{ dtype: 'bf16' as const }, { quantize: { bits: 4 as const, group: 32 as const } }]) {
    const { model, config, report } = await loadDeem(folder, { strict: false, seed: 3, ...options })
    using fresh = await Deem.build(config, { seed: 3, ...('dtype' in options && { dtype: options.dtype }) })
    using other = await Deem.build(config, { seed: 4, ...('dtype' in options && { dtype: options.dtype }) })
    const [name = ''] = report?.missing ?? []
    t.true(name.startsWith(gone), `${report?.missing}`)
    using start = model.view(name)
    using same = fresh.view(name)
    using unlike = other.view(name)
    t.deepEqual(start.read(), same.read())
    t.notDeepEqual(start.read(), unlike.read())
  }
})

test('library housekeeping in config.json is no key of the model', async (t) => {
  const folder = copyOf('deem')
  editJson(join(folder, 'config.json'), (c) => ({ ...c, _name_or_path: 'x', transformers_version: '4.31.0' }))
  const { config } = await loadDeem(folder)
  t.deepEqual(config, wholeConfig())
})

test('shards with an index, in any order of its names', async (t) => {
  const folder = copyOf('deem')
  rmSync(join(folder, 'pytorch_model.bin'))
  const { tensors } = await readTensors(nanoWeights)
  const names = Object.keys(tensors)
  const half = names.length >> 1
  const part = (from: number, to: number) =>
    Object.fromEntries(names.slice(from, to).map((n) => [n, tensors[n] as Tensor]))
  await writeTensors(join(folder, 'deem-00002-of-00002.safetensors'), part(0, half))
  await writeTensors(join(folder, 'deem-00001-of-00002.safetensors'), part(half, names.length))
  const weight_map = Object.fromEntries(
    names.map((n, i) => [n, `deem-0000${i < half ? 2 : 1}-of-00002.safetensors`] as const).reverse(),
  )
  writeFileSync(join(folder, 'deem.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }))
  const { model } = await loadDeem(folder)
  const stored = await nano()
  t.deepEqual(same(model, stored.model), [])
  t.is(typeof json(join(folder, 'config.json'))['llm'], 'object')
})
