// What loadDeem refuses: every error has its code and names the file; nothing stays in memory.
import { cpSync, mkdirSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import {
  type DeemPieces,
  emptyCache,
  loadDeem,
  mapTensors,
  memory,
  ops,
  resetPeakMemory,
  type Tensor,
  tensor,
  writeTensors,
} from 'deem'
import {
  copyOf,
  editJson,
  editWeights,
  emptyFolder,
  failure,
  layout,
  removeCopies,
  wholeConfig,
} from '../_harness/hf-layout.js'
import { collect } from '../_harness/memory.js'

test.after.always(removeCopies)

interface Refusal {
  /** Stored layout that is copied and damaged. */
  of: 'deem' | 'llama' | 'stable_diffusion' | 'open_clip'
  change: (folder: string) => unknown
  code: string
  says: RegExp
}

const remove = (name: string) => (folder: string) => rmSync(join(folder, name), { recursive: true })
const write = (name: string, text: string) => (folder: string) => writeFileSync(join(folder, name), text)
const config =
  (more: object, file = 'config.json') =>
  (folder: string) =>
    editJson(join(folder, file), (c) => ({ ...c, ...more }))

const cases: Record<string, Refusal> = {
  'a DEEM without config': {
    of: 'deem',
    change: remove('config.json'),
    code: 'ERR_IO',
    says: /config\.json' cannot be read/,
  },
  'a broken config': {
    of: 'deem',
    change: write('config.json', '{"llm": '),
    code: 'ERR_FORMAT',
    says: /config\.json' is not JSON/,
  },
  'a config that is a list': {
    of: 'deem',
    change: write('config.json', '[]'),
    code: 'ERR_FORMAT',
    says: /config\.json' must hold/,
  },
  'an unknown key': {
    of: 'deem',
    change: config({ seq_length: 5 }),
    code: 'ERR_CONFIG',
    says: /config\.json'.*seq_length/,
  },
  'a missing key': {
    of: 'deem',
    change: config({ seq_len: undefined }),
    code: 'ERR_CONFIG',
    says: /config\.json'.*seq_len/,
  },
  'sizes that contradict': {
    of: 'deem',
    change: config({ image_embed_dim: 48 }),
    code: 'ERR_CONFIG',
    says: /config\.json'/,
  },
  'a LLaMA in place of a DEEM': {
    of: 'deem',
    change: config({ model_type: 'llama' }),
    code: 'ERR_CONFIG',
    says: /\{ llama: folder \}/,
  },
  'no weights': {
    of: 'deem',
    change: remove('pytorch_model.bin'),
    code: 'ERR_IO',
    says: /holds no weights.*model\.safetensors/,
  },
  'weights by another name': {
    of: 'deem',
    change: (folder) => renameSync(join(folder, 'pytorch_model.bin'), join(folder, 'pytorch_model.fp16.bin')),
    code: 'ERR_IO',
    says: /holds no weights.*only the variant fp16: /,
  },
  'weights cut short': {
    of: 'deem',
    change: (folder) => truncateSync(join(folder, 'pytorch_model.bin'), 100_000),
    code: 'ERR_FORMAT',
    says: /pytorch_model\.bin/,
  },
  'a tokenizer that means other ids': {
    of: 'deem',
    change: (folder) => {
      cpSync(join(layout('llama'), 'tokenizer.json'), join(folder, 'tokenizer.json'))
      config({ special_token_dict: { ...(wholeConfig()['special_token_dict'] as object), soi_token_id: 515 } })(folder)
    },
    code: 'ERR_CONFIG',
    says: /soi_token_id is 515 but the tokenizer says 512/,
  },
  'a broken tokenizer': {
    of: 'llama',
    change: write('tokenizer.json', '{'),
    code: 'ERR_FORMAT',
    says: /tokenizer\.json/,
  },
  'missing, unexpected and misshapen weights, all in one message': {
    of: 'deem',
    change: (folder) =>
      editWeights(folder, 'model', (all) => {
        for (const name of Object.keys(all)) if (name.startsWith('visual_tokenizer.encoder.unet.')) delete all[name]
        all['extra.weight'] = ops.full([1], 1, 'f32')
        all['soi_token'] = ops.full([2, 64], 1, 'f32')
        all['visual_tokenizer.proj_i.bias'] = tensor(new BigInt64Array(32))
      }),
    code: 'ERR_WEIGHTS',
    says: /684 missing: (?:[^,;]+, ){20}\.\.\.; 1 unexpected: extra\.weight; 2 misshapen: .*proj_i\.bias needs \[32\] but is i64 \[32\].*soi_token needs \[1,64\] but is f32 \[2,64\]/,
  },
  'a shared tensor whose two values differ': {
    of: 'deem',
    change: (folder) =>
      editWeights(folder, 'model', (all) => {
        all['visual_tokenizer.neg_prompt_embeds'] = ops.full([1, 5, 32], 1, 'f32')
      }),
    code: 'ERR_WEIGHTS',
    says: /neg_prompt_embeds.*are one tensor but their values differ/,
  },
  'another architecture': {
    of: 'llama',
    change: config({ model_type: 'mistral' }),
    code: 'ERR_CONFIG',
    says: /config\.json': model_type/,
  },
  'another activation': {
    of: 'llama',
    change: config({ hidden_act: 'gelu' }),
    code: 'ERR_CONFIG',
    says: /config\.json': hidden_act/,
  },
  'scaled positions': {
    of: 'llama',
    change: config({ rope_scaling: { type: 'linear', factor: 2 } }),
    code: 'ERR_CONFIG',
    says: /rope_scaling/,
  },
  'scaled positions of newer files': {
    of: 'llama',
    change: config({ rope_parameters: { rope_type: 'llama3' } }),
    code: 'ERR_CONFIG',
    says: /rope_type/,
  },
  'heads of another width': { of: 'llama', change: config({ head_dim: 16 }), code: 'ERR_CONFIG', says: /head_dim/ },
  'a LLaMA without sizes': {
    of: 'llama',
    change: config({ hidden_size: undefined }),
    code: 'ERR_CONFIG',
    says: /config\.json' lacks hidden_size/,
  },
  'a vocabulary of another size than the table': {
    of: 'llama',
    change: async (folder) => {
      rmSync(join(folder, 'tokenizer.json'))
      rmSync(join(folder, 'tokenizer.model'))
      await editWeights(folder, 'model', (all) => {
        all['model.embed_tokens.weight'] = ops.full([500, 64], 1, 'f32')
      })
    },
    code: 'ERR_WEIGHTS',
    says: /embed_tokens\.weight needs \[512,64\] but is f32 \[500,64\]/,
  },
  'a LLaMA with one layer too many': {
    of: 'llama',
    change: (folder) =>
      editWeights(folder, 'model', (all) => {
        all['model.layers.2.mlp.up_proj.weight'] = all['model.layers.1.mlp.up_proj.weight'] as Tensor
      }),
    code: 'ERR_WEIGHTS',
    says: /1 unexpected: model\.layers\.2\.mlp\.up_proj\.weight$/,
  },
  'a head that is missing and not tied': {
    of: 'llama',
    change: (folder) => editWeights(folder, 'model', (all) => delete all['lm_head.weight']),
    code: 'ERR_WEIGHTS',
    says: /1 missing: text_decoder\.head\.weight$/,
  },
  'no UNet': { of: 'stable_diffusion', change: remove('unet'), code: 'ERR_IO', says: /unet.config\.json/ },
  'a broken scheduler': {
    of: 'stable_diffusion',
    change: write('scheduler/scheduler_config.json', 'x'),
    code: 'ERR_FORMAT',
    says: /scheduler_config\.json/,
  },
  'no text encoder': {
    of: 'stable_diffusion',
    change: remove('text_encoder'),
    code: 'ERR_IO',
    says: /text_encoder.config\.json/,
  },
  'no vocabulary': {
    of: 'stable_diffusion',
    change: remove('tokenizer/vocab.json'),
    code: 'ERR_IO',
    says: /vocab\.json/,
  },
  'a vocabulary of words': {
    of: 'stable_diffusion',
    change: write('tokenizer/vocab.json', '{"a":"b"}'),
    code: 'ERR_FORMAT',
    says: /vocab\.json': the id of 'a'/,
  },
  'merges of three parts': {
    of: 'stable_diffusion',
    change: write('tokenizer/merges.txt', '#version: 0.2\na b c\n'),
    code: 'ERR_FORMAT',
    says: /merges\.txt'.*'a b c'/,
  },
  'a padding token that does not exist': {
    of: 'stable_diffusion',
    change: config({ pad_token: 'PAD' }, 'tokenizer/tokenizer_config.json'),
    code: 'ERR_FORMAT',
    says: /pad_token 'PAD'/,
  },
  'a text encoder with a hole': {
    of: 'stable_diffusion',
    change: (folder) =>
      editWeights(join(folder, 'text_encoder'), 'model', (all) => delete all['text_model.final_layer_norm.bias']),
    code: 'ERR_WEIGHTS',
    says: /text_encoder.*1 missing: text_model\.final_layer_norm\.bias/,
  },
  'a text encoder of another length': {
    of: 'stable_diffusion',
    change: config({ model_max_length: 4 }, 'tokenizer/tokenizer_config.json'),
    code: 'ERR_WEIGHTS',
    says: /neg_prompt_embeds needs \[1,5,32\] but is f32 \[1,4,32\]/,
  },
  'both names of one attention weight': {
    of: 'stable_diffusion',
    change: (folder) =>
      editWeights(join(folder, 'vae'), 'diffusion_pytorch_model', (all) => {
        all['encoder.mid_block.attentions.0.to_q.bias'] = ops.full([8], 1, 'f32')
      }),
    code: 'ERR_WEIGHTS',
    says: /their values differ/,
  },
  'an unknown tensor beside the image tower': {
    of: 'open_clip',
    change: (folder) =>
      editWeights(folder, 'open_clip_model', (all) => {
        all['audio.weight'] = ops.full([1], 1, 'f32')
      }),
    code: 'ERR_WEIGHTS',
    says: /1 unexpected: audio\.weight$/,
  },
  'an image tower with a hole': {
    of: 'open_clip',
    change: (folder) => editWeights(folder, 'open_clip_model', (all) => delete all['visual.trunk.stem.0.bias']),
    code: 'ERR_WEIGHTS',
    says: /1 missing: visual_tokenizer\.sniffer\.vision_model\.visual\.trunk\.stem\.0\.bias$/,
  },
}

const sourceOf = (of: Refusal['of'], folder: string): string | DeemPieces => {
  const key = ({ llama: 'llama', stable_diffusion: 'stableDiffusion', open_clip: 'openClip' } as const)[of as 'llama']
  return key ? { config: wholeConfig(), [key]: folder } : folder
}

for (const [name, { of, change, code, says }] of Object.entries(cases))
  test.serial(`refused: ${name}`, async (t) => {
    const folder = copyOf(of)
    await change(folder)
    await collect()
    const { current } = memory()
    const error = await failure(loadDeem(sourceOf(of, folder)))
    t.is(error.code, code, error.message)
    t.regex(error.message, says)
    if (code !== 'ERR_CONFIG' || !error.message.includes('tokenizer'))
      t.true(error.message.includes(folder), error.message)
    await collect()
    t.is(memory().current, current, 'memory is back')
  })

test('refused: places where nothing is, and sources that are none', async (t) => {
  const file = join(layout('deem'), 'config.json')
  for (const [source, code, says] of [
    ['/no/such/folder', 'ERR_IO', /no\/such\/folder/],
    [file, 'ERR_IO', /is no folder/],
    [{ config: wholeConfig(), llama: '/no/llama' }, 'ERR_IO', /no\/llama/],
    [{ config: wholeConfig(), openClip: '/no/clip.bin' }, 'ERR_IO', /no\/clip\.bin/],
    [{ lama: 'x' }, 'ERR_CONFIG', /'llama'/],
    [{ config: { ...wholeConfig(), llm: 5 } }, 'ERR_CONFIG', /llm/],
    [7, 'ERR_CONFIG', /source/],
  ] as [never, string, RegExp][]) {
    const error = await failure(loadDeem(source))
    t.is(error.code, code, error.message)
    t.regex(error.message, says)
  }
})

// ---- indexes of shards ------------------------------------------------------------------------------------------------

const index = 'model.safetensors.index.json'
const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const

const lies: Record<string, { change: (folder: string) => unknown; code?: string; says: RegExp }> = {
  'a file outside of the folder': { change: mapTo('../secret.safetensors'), says: /which is no shard's name/ },
  'a file by its whole path': { change: mapTo('/etc/secret.safetensors'), says: /which is no shard's name/ },
  'a file in a folder below': { change: mapTo('below/model.safetensors'), says: /which is no shard's name/ },
  'a file with a backslash': { change: mapTo('..\\secret.safetensors'), says: /which is no shard's name/ },
  'a file that holds no weights': { change: mapTo('tokenizer.json'), says: /which is no shard's name/ },
  'a number': { change: mapTo(5), says: /lies in 5, which is no shard's name/ },
  'a shard that is not there': {
    change: mapTo('model-00003.safetensors'),
    code: 'ERR_IO',
    says: /model-00003\.safetensors/,
  },
  'a tensor that its shard lacks': { change: mapTo(shards[1]), says: /promises 'model\.norm2' in .*which lacks it/ },
  'no map': {
    change: (folder) => editJson(join(folder, index), () => ({ metadata: {} })),
    says: /lacks the object 'weight_map'/,
  },
  'no JSON': { change: write(index, 'weight_map'), says: /index\.json' is not JSON/ },
  'two shards with one tensor': {
    change: async (folder) => {
      const { tensors } = await mapTensors(join(folder, shards[0]))
      const { tensors: more } = await mapTensors(join(folder, shards[1]))
      const repeated = { ...tensors, 'lm_head.weight': more['lm_head.weight'] as Tensor }
      await writeTensors(join(folder, shards[0]), repeated)
    },
    says: /both model-00001.* and model-00002.* hold 'lm_head\.weight'/,
  },
  'two indexes': {
    change: (folder) => {
      for (const name of ['a', 'b']) cpSync(join(folder, index), join(folder, `${name}.safetensors.index.json`))
      rmSync(join(folder, index))
    },
    says: /several indexes/,
  },
}

function mapTo(shard: unknown) {
  return (folder: string) =>
    editJson(join(folder, index), (all) => ({ weight_map: { ...(all['weight_map'] as object), 'model.norm2': shard } }))
}

for (const [name, { change, code = 'ERR_FORMAT', says }] of Object.entries(lies))
  test.serial(`an index that names ${name} is refused`, async (t) => {
    const folder = copyOf('llama')
    await change(folder)
    const error = await failure(loadDeem({ config: wholeConfig(), llama: folder }))
    t.is(error.code, code, error.message)
    t.regex(error.message, says)
    t.true(error.message.includes(folder))
  })

// ---- ends in the middle -----------------------------------------------------------------------------------------------

test.serial('an abort and a failing listener leave nothing behind', async (t) => {
  const pieces = {
    config: wholeConfig(),
    llama: layout('llama'),
    stableDiffusion: layout('stable_diffusion'),
    openClip: layout('open_clip'),
  }
  await collect()
  const { current } = memory()
  const reason = new Error('enough')
  for (const source of [layout('deem'), pieces]) {
    t.is(await loadDeem(source, { signal: AbortSignal.abort(reason) }).catch((e: unknown) => e), reason)
    // Between files, which is where small files tell.
    const stop = new AbortController()
    const during = loadDeem(source, { signal: stop.signal, onProgress: () => stop.abort(reason) })
    if (typeof source !== 'string') t.is(await during.catch((e: unknown) => e), reason)
    else (await during.catch(() => undefined))?.model.dispose()
    const failing = loadDeem(source, {
      onProgress: () => {
        throw reason
      },
    })
    t.is(await failing.catch((e: unknown) => e), reason)
    const early = new AbortController()
    const running = loadDeem(source, { signal: early.signal })
    setImmediate(() => early.abort(reason))
    t.is(await running.catch((e: unknown) => e), reason)
  }
  await collect()
  t.is(memory().current, current)
})

test.serial('memory is back after dispose', async (t) => {
  await collect()
  const { current } = memory()
  for (const dtype of ['f32', 'bf16'] as const) {
    const { model } = await loadDeem(layout('deem'), { dtype })
    t.true(memory().current > current)
    model.dispose()
  }
  await collect()
  t.is(memory().current, current)
  emptyCache()
})

test.serial('loading takes the model and about one tensor more', async (t) => {
  const folder = copyOf('deem')
  await editWeights(folder, 'model', () => undefined)
  for (const dtype of ['f32', 'bf16'] as const) {
    await collect()
    emptyCache()
    const { current } = memory()
    resetPeakMemory()
    const { model } = await loadDeem(folder, { dtype })
    const most = memory().peak
    const held = memory().current
    const largest = Math.max(...model.parameters().map(({ shape }) => shape.reduce((a, b) => a * b, 1))) * 4
    // A convolution is laid out and cast.
    t.true(most - held <= 3 * largest + 4096, `${most - held} over ${held - current}, largest ${largest}`)
    model.dispose()
  }
})

test('an empty folder is told from one without a config', async (t) => {
  const folder = emptyFolder()
  mkdirSync(folder)
  const error = await failure(loadDeem(folder))
  t.is(error.code, 'ERR_IO')
  t.true(error.message.includes(join(folder, 'config.json')))
})
