// Weights as others read them: names, shards, dtypes, what is refused, and that nothing is lost on the way and back.
import { cpSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import {
  convertFolder,
  Deem,
  emptyCache,
  loadDeem,
  memory,
  ops,
  readTensors,
  resetPeakMemory,
  saveDeem,
  type Tensor,
  tensor,
  writeTensors,
} from 'deem'
import {
  copyOf,
  editWeights,
  emptyFolder,
  failure,
  type Json,
  json,
  layout,
  removeCopies,
  wholeConfig,
} from '../_harness/hf-layout.js'
import { collect } from '../_harness/memory.js'
import { enliven } from '../_harness/model.js'

test.after.always(removeCopies)

const bytes = (x: Tensor) => {
  const a = x.read()
  return Buffer.from(a.buffer, a.byteOffset, a.byteLength)
}
const differing = (a: Deem, b: Deem, among: RegExp) =>
  a
    .parameters()
    .filter(({ name }) => among.test(name) && !bytes(a.read(name)).equals(bytes(b.read(name))))
    .map(({ name }) => name)
const namesIn = (folder: string) => readdirSync(folder).sort()
const shapesIn = async (file: string) =>
  Object.fromEntries(
    Object.entries((await readTensors(file)).tensors).map(([name, x]) => [name, `${x.dtype} ${x.shape}`]),
  )

/** A whole model of sizes that no fixture has, with values everywhere but in the frozen head's bias. */
async function unusual(): Promise<Deem> {
  const base = wholeConfig() as Record<string, Json>
  const tokens = { bos_token_id: 1, eos_token_id: 2, pad_token_id: 0, soi_token_id: 37, image_token_id: 38 }
  const sd = base['sd'] as Record<string, Json>
  const model = await Deem.build({
    ...base,
    txt_vocab_size: 43,
    special_token_dict: tokens,
    llm: {
      ...base['llm'],
      hidden_size: 48,
      num_attention_heads: 6,
      num_key_value_heads: 2,
      intermediate_size: 56,
      num_hidden_layers: 3,
      vocab_size: 37,
      rope_theta: 5e4,
    },
    convnext: { ...base['convnext'], depths: [1, 2, 1, 1], dims: [8, 24, 16, 40], embed_dim: 6, patch_size: 4 },
    image_perceiver: { ...base['image_perceiver'], encoder_hidden_size: 48 },
    sd: {
      ...sd,
      vae: { block_out_channels: [8, 12, 8, 16], norm_num_groups: 4, layers_per_block: 2 },
      unet: {
        ...sd['unet'],
        use_linear_projection: false,
        block_out_channels: [8, 12, 16, 16],
        attention_head_dim: [2, 3, 4, 2],
      },
    },
  })
  const bias = model.read('text_decoder.head.bias')
  enliven(model)
  model.assign('text_decoder.head.bias', bias)
  return model
}

const stableDiffusion = layout('stable_diffusion')

test('every layout of a model of other sizes loads to the same bits', async (t) => {
  using model = await unusual()
  const folder = emptyFolder()
  await saveDeem(model, folder)
  t.deepEqual(namesIn(folder), ['config.json', 'model.safetensors'])
  t.deepEqual(json(join(folder, 'config.json')), model.config)
  t.deepEqual((await readTensors(join(folder, 'model.safetensors'))).metadata, { format: 'pt' })
  const again = await loadDeem(folder)
  t.deepEqual(differing(again.model, model, /./), [])

  const [llama, sd, openClip] = [emptyFolder(), emptyFolder(), emptyFolder()]
  await saveDeem(model, llama, { layout: 'llama' })
  await saveDeem(model, sd, { layout: 'stable-diffusion', companionsFrom: stableDiffusion })
  await saveDeem(model, openClip, { layout: 'open-clip' })
  const { llm, sd: own, convnext, ...rest } = model.config as Record<string, Json>
  const config = {
    ...rest,
    llm: Object.fromEntries(Object.entries(llm as Json).filter(([key]) => key.startsWith('mmfs'))),
    sd: { mmfs: own?.['mmfs'], image_size: own?.['image_size'] },
    convnext: { adapter_dim: convnext?.['adapter_dim'] },
  }
  const pieced = await loadDeem({ config, llama, stableDiffusion: sd, openClip })
  const stored = /^mm_decoder\.(?!.*(llama_cross_attn|embed_tokens))|encoder\.(unet|vae)\.|\.visual\./
  t.deepEqual(differing(pieced.model, model, stored), [])
  for (const name of ['mm_decoder.embed_tokens.weight', 'text_decoder.head.weight']) {
    const rows = (m: Deem) =>
      m
        .read(name)
        .toFloat32()
        .slice(0, 37 * 48)
    t.deepEqual(rows(pieced.model), rows(model))
  }
  t.is((pieced.config['llm'] as Json)['rope_theta'], 5e4)
  t.is((pieced.config['llm'] as Json)['num_key_value_heads'], 2)
})

test('written under the original names, with the original shapes', async (t) => {
  const { model } = await loadDeem(layout('deem'))
  const llama = emptyFolder()
  await saveDeem(model, llama, { layout: 'llama', dtype: 'bf16', companionsFrom: layout('llama') })
  const original = {
    ...(await shapesIn(join(layout('llama'), 'model-00001-of-00002.safetensors'))),
    ...(await shapesIn(join(layout('llama'), 'model-00002-of-00002.safetensors'))),
  }
  t.deepEqual(await shapesIn(join(llama, 'model.safetensors')), original)
  const config = json(join(llama, 'config.json'))
  const asked = json(join(layout('llama'), 'config.json'))
  for (const key of ['model_type', 'hidden_size', 'vocab_size', 'torch_dtype', 'architectures', 'rms_norm_eps'])
    t.deepEqual(config[key], asked[key], key)
  t.true(existsSync(join(llama, 'tokenizer.model')))

  const file = 'diffusion_pytorch_model.safetensors'
  for (const oldAttentionNames of [true, false]) {
    const sd = emptyFolder()
    await saveDeem(model, sd, { layout: 'stable-diffusion', oldAttentionNames, companionsFrom: stableDiffusion })
    t.deepEqual(await shapesIn(join(sd, 'unet', file)), await shapesIn(join(stableDiffusion, 'unet', file)))
    const vae = await shapesIn(join(sd, 'vae', file))
    const old = await shapesIn(join(stableDiffusion, 'vae', file))
    if (oldAttentionNames) t.deepEqual(vae, old)
    else t.true('decoder.mid_block.attentions.0.to_out.0.bias' in vae)
    t.is(Object.keys(vae).length, Object.keys(old).length)
    t.deepEqual(namesIn(sd), ['model_index.json', 'scheduler', 'text_encoder', 'tokenizer', 'unet', 'vae'])
    t.is(json(join(sd, 'unet/config.json'))['_class_name'], 'UNet2DConditionModel')
  }
})

test('shards: named and indexed as Hugging Face does, none above the limit, and what lay there before is gone', async (t) => {
  const { model } = await loadDeem(layout('deem'))
  const folder = emptyFolder()
  await saveDeem(model, folder)
  writeFileSync(join(folder, 'model_card.md'), 'kept')
  const progress: number[] = []
  await saveDeem(model, folder, { maxShardBytes: 500_000, onProgress: (done) => progress.push(done) })
  const files = namesIn(folder).filter((name) => name.endsWith('.safetensors'))
  t.true(files.length > 3)
  t.deepEqual(
    files,
    files.map(
      (_, i) => `model-${String(i + 1).padStart(5, '0')}-of-${String(files.length).padStart(5, '0')}.safetensors`,
    ),
  )
  const { metadata, weight_map } = json(join(folder, 'model.safetensors.index.json')) as {
    metadata: { total_size: number }
    weight_map: Record<string, string>
  }
  let total = 0
  for (const file of files) {
    const { tensors } = await readTensors(join(folder, file))
    const size = Object.values(tensors).reduce((sum, x) => sum + x.size * 4, 0)
    t.true(size <= 500_000)
    total += size
    for (const name of Object.keys(tensors)) t.is(weight_map[name], file)
  }
  t.is(metadata.total_size, total)
  t.is(Object.keys(weight_map).length, 1326)
  t.deepEqual(progress.at(-1), 1326)
  t.deepEqual(differing((await loadDeem(folder)).model, model, /./), [])
  // And back to one file.
  await saveDeem(model, folder, { dtype: 'f16' })
  t.deepEqual(namesIn(folder), ['config.json', 'model.safetensors', 'model_card.md'])
  t.deepEqual(differing((await loadDeem(folder)).model, model, /./), [], 'f16 in, f16 out')
})

test('a tensor larger than a shard has one of its own', async (t) => {
  const { model } = await loadDeem(layout('deem'))
  const folder = emptyFolder()
  await saveDeem(model, folder, { layout: 'open-clip', maxShardBytes: 1 })
  t.is(namesIn(folder).length, Object.keys(await filesOf(folder)).length + 1)
  const openClip = { config: wholeConfig(), openClip: folder }
  t.deepEqual(differing((await loadDeem(openClip)).model, model, /\.visual\./), [])
})
const filesOf = async (folder: string) =>
  json(join(folder, 'open_clip_model.safetensors.index.json'))['weight_map'] as Json

test('a tokenizer goes along with a DEEM and with nothing else', async (t) => {
  const { model, tokenizer } = await loadDeem({ config: wholeConfig(), llama: layout('llama') })
  t.truthy(tokenizer)
  const folder = emptyFolder()
  await saveDeem(model, folder, { tokenizer: tokenizer as never })
  t.deepEqual((await loadDeem(folder)).tokenizer?.ids, tokenizer?.ids)
  t.is(
    (await failure(saveDeem(model, emptyFolder(), { layout: 'llama', tokenizer: tokenizer as never }))).code,
    'ERR_VALUE',
  )
})

test('from folder to folder without a model: the bits stay, names and dtypes change as asked', async (t) => {
  const source = layout('deem')
  const same = emptyFolder()
  await convertFolder(source, same, { maxShardBytes: 400_000 })
  const { model } = await loadDeem(source, { dtype: 'f16' })
  t.deepEqual(differing((await loadDeem(same, { dtype: 'f16' })).model, model, /./), [])
  t.deepEqual(json(join(same, 'config.json')), wholeConfig())
  for (const kind of ['llama', 'stable-diffusion', 'open-clip'] as const) {
    const [a, b] = [emptyFolder(), emptyFolder()]
    await convertFolder(source, a, { layout: kind, dtype: 'bf16' })
    await saveDeem(await f32Of(source), b, { layout: kind, dtype: 'bf16' })
    for (const name of readdirSync(a, { recursive: true, encoding: 'utf8' }).filter((n) => n.endsWith('safetensors'))) {
      const [x, y] = [(await readTensors(join(a, name))).tensors, (await readTensors(join(b, name))).tensors]
      t.deepEqual(Object.keys(x).sort(), Object.keys(y).sort())
      for (const key of Object.keys(x)) t.true(bytes(x[key] as Tensor).equals(bytes(y[key] as Tensor)), key)
    }
  }
})
const f32Of = async (folder: string) => (await loadDeem(folder)).model

test('what is refused', async (t) => {
  const { model } = await loadDeem(layout('deem'))
  const biased = (await loadDeem(layout('deem'))).model
  const bias = biased.read('text_decoder.head.bias').toFloat32()
  bias[3] = 1
  biased.assign('text_decoder.head.bias', tensor(bias))
  const file = join(emptyFolder(), '..', 'a-file')
  writeFileSync(file, '')
  const gone = await loadDeem(layout('deem'))
  gone.model.dispose()
  const twice = copyOf('deem')
  await editWeights(join(twice), 'model', (all) => {
    all['visual_tokenizer.encoder.vae.encoder.mid_block.attentions.0.query.bias'] = ops.full([8], 1, 'f32')
  })
  const cases: [string, Promise<unknown>, RegExp][] = [
    ['ERR_DTYPE', saveDeem(model, emptyFolder(), { dtype: 'i64' }), /dtype is 'i64'/],
    ['ERR_VALUE', saveDeem(model, emptyFolder(), { maxShardBytes: 0 }), /maxShardBytes/],
    ['ERR_VALUE', saveDeem(model, emptyFolder(), { maxShardBytes: Number.NaN }), /maxShardBytes/],
    ['ERR_VALUE', saveDeem(model, emptyFolder(), { layout: 'gguf' as never }), /gguf/],
    ['ERR_IO', saveDeem(model, file), /a-file/],
    ['ERR_IO', saveDeem(model, emptyFolder(), { companionsFrom: '/no/such/folder' }), /no\/such\/folder/],
    ['ERR_WEIGHTS', saveDeem(biased, emptyFolder(), { layout: 'llama' }), /not 0 at id 3/],
    ['ERR_DISPOSED', saveDeem(gone.model, emptyFolder()), /disposed/],
    ['ERR_VALUE', convertFolder(twice, twice), /in place/],
    ['ERR_FORMAT', convertFolder(twice, emptyFolder()), /twice/],
    ['ERR_IO', convertFolder('/no/such/folder', emptyFolder()), /no\/such\/folder/],
    ['ERR_WEIGHTS', convertFolder(await onlyBias(), emptyFolder(), { layout: 'open-clip' }), /no weights for/],
  ]
  for (const [code, running, says] of cases) {
    const error = await failure(running)
    t.is(error.code, code, error.message)
    t.regex(error.message, says)
  }
})

async function onlyBias(): Promise<string> {
  const folder = emptyFolder()
  mkdirSync(folder)
  cpSync(join(layout('deem'), 'config.json'), join(folder, 'config.json'))
  await writeTensors(join(folder, 'model.safetensors'), { 'context_feat_proj.bias': ops.full([64], 1, 'f32') })
  return folder
}

test.serial('an abort leaves whole files and no others', async (t) => {
  const { model } = await loadDeem(layout('deem'))
  const folder = emptyFolder()
  const stop = new AbortController()
  const reason = new Error('enough')
  const saving = saveDeem(model, folder, {
    maxShardBytes: 300_000,
    signal: stop.signal,
    onProgress: () => stop.abort(reason),
  })
  t.is(await saving.catch((e: unknown) => e), reason)
  const files = namesIn(folder)
  t.true(
    files.length > 0 && !files.includes('config.json') && files.every((name) => /^model-0.*safetensors$/.test(name)),
  )
  for (const file of files) await t.notThrowsAsync(readTensors(join(folder, file)))
})

test.serial('writing in another dtype needs no second model', async (t) => {
  const { model } = await loadDeem(layout('deem'))
  const largest = Math.max(...model.parameters().map(({ shape }) => shape.reduce((a, b) => a * b, 1))) * 4
  await collect()
  emptyCache()
  const { current } = memory()
  for (const how of [{ dtype: 'bf16' }, { layout: 'llama', dtype: 'f16' }, {}] as const) {
    resetPeakMemory()
    await saveDeem(model, emptyFolder(), how)
    // A strided tensor is laid out, then cast.
    t.true(memory().peak - current <= 2.5 * largest + 4096, `${memory().peak - current} of ${largest}`)
  }
  await collect()
  t.is(memory().current, current)
})

test('files of tensors in another dtype: floating ones are cast, others stay', async (t) => {
  const folder = emptyFolder()
  mkdirSync(folder)
  const file = join(folder, 'x.safetensors')
  const x = ops.permute(
    tensor([
      [1, 2, 3],
      [4, 5, 6.0009765625],
    ]),
    [1, 0],
  )
  await writeTensors(file, { x, ids: tensor(new BigInt64Array([7n])), h: ops.cast(x, 'f16') }, { dtype: 'bf16' })
  const { tensors } = await readTensors(file)
  t.deepEqual(await shapesIn(file), { ids: 'i64 1', x: 'bf16 3,2', h: 'bf16 3,2' })
  t.deepEqual([...(tensors['x']?.toFloat32() ?? [])], [1, 4, 2, 5, 3, 6])
  t.is((await failure(writeTensors(file, { x }, { dtype: 'i64' }))).code, 'ERR_DTYPE')
})

test('numbers beyond the range of a dtype are refused, in files and in models', async (t) => {
  const folder = emptyFolder()
  mkdirSync(folder)
  const file = join(folder, 'x.safetensors')
  const error = await failure(writeTensors(file, { ok: tensor([1]), big: tensor([1, 65520]) }, { dtype: 'f16' }))
  t.is(error.code, 'ERR_VALUE')
  t.regex(error.message, /'big': 65520 is beyond the range of f16/)
  t.false(existsSync(file))
  // What is infinite already is no news, and the largest number is none.
  await writeTensors(file, { x: tensor([Number.POSITIVE_INFINITY, Number.NaN, 65504]) }, { dtype: 'f16' })
  await writeTensors(file, { x: tensor([1e38, 65520]) }, { dtype: 'bf16' })

  const { model } = await loadDeem(layout('deem'))
  const soi = model.read('soi_token').toFloat32()
  soi[5] = -7e4
  model.assign('soi_token', tensor(soi, [1, 64]))
  t.regex((await failure(saveDeem(model, folder, { dtype: 'f16' }))).message, /'soi_token': -70000 is beyond/)
  await saveDeem(model, folder)
  const loading = await failure(loadDeem(folder, { dtype: 'f16' }))
  t.is(loading.code, 'ERR_VALUE')
  t.regex(loading.message, /'soi_token'/)
})

test('companions of the folder that is written to stay where they are', async (t) => {
  const sd = copyOf('stable_diffusion')
  const { model } = await loadDeem(layout('deem'))
  await saveDeem(model, sd, { layout: 'stable-diffusion', companionsFrom: sd })
  await t.notThrowsAsync(loadDeem({ config: wholeConfig(), stableDiffusion: sd }))
})

test('views of parameters are live; leading rows leave the others', async (t) => {
  const { model } = await loadDeem(layout('deem'))
  const name = 'mm_decoder.embed_tokens.weight'
  const view = model.view(name)
  await model.assignAll({ [name]: ops.full([2, 64], 9, 'f32') }, { leading: true })
  const values = view.toFloat32()
  t.true(values.slice(0, 128).every((v) => v === 9) && values.slice(128).some((v) => v !== 9))
  t.false(view.tracked)
  await t.throwsAsync(model.assignAll({ [name]: ops.full([2, 64], 9, 'f32') }), { code: 'ERR_WEIGHTS' })
  await t.throwsAsync(model.assignAll({ [name]: ops.full([519, 64], 9, 'f32') }, { leading: true }), {
    code: 'ERR_WEIGHTS',
  })
  await t.throwsAsync(model.assignAll({ [name]: ops.full([2, 63], 9, 'f32') }, { leading: true }), {
    code: 'ERR_WEIGHTS',
  })
  const conv = model.parameters().find(({ shape }) => shape.length === 4 && shape[3] === 7)?.name as string
  t.deepEqual(model.view(conv).toFloat32(), model.read(conv).toFloat32())
  t.deepEqual(model.view(conv).shape, model.read(conv).shape)
})
