// Configurations of the whole model that are refused: each with the path of what is wrong.
import test from 'ava'
import { Deem } from 'deem'
import { codeOf } from '../_harness/bad-calls.js'
import { refusesConfig } from '../_harness/model.js'
import { nanoConfig } from '../_harness/nano.js'

type Json = Record<string, unknown>
const config = nanoConfig()

/** The configuration with the value at `path` replaced; `undefined` removes it. */
function at(path: string, value: unknown): Json {
  const copy = structuredClone(config)
  const keys = path.split('.')
  const last = keys.pop() as string
  let here = copy
  for (const key of keys) here = here[key] as Json
  if (value === undefined) delete here[last]
  else here[last] = value
  return copy
}

/** Paths of all objects and of all values that are none. */
function pathsOf(value: unknown, path: string[] = []): { objects: string[]; values: [string, unknown][] } {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return { objects: [], values: [[path.join('.'), value]] }
  const below = Object.entries(value).map(([key, v]) => pathsOf(v, [...path, key]))
  return {
    objects: [path.join('.'), ...below.flatMap((b) => b.objects)],
    values: below.flatMap((b) => b.values),
  }
}

const { objects, values } = pathsOf(config)
/** Known, and of no effect: published files hold them. */
const ignored = /^special_token_dict\.(ref|box)|skip_prk_steps|sample_size/
const build = async (changed: object): Promise<unknown> => {
  try {
    ;(await Deem.build(changed)).dispose()
    return 'built'
  } catch (error) {
    return error
  }
}
test('config: a key that nobody knows is refused at every level', async (t) => {
  t.is(objects.length, 12)
  for (const path of objects) {
    const error = await build(at(`${path}${path && '.'}no_such_key`, 1))
    t.is(codeOf(error), 'ERR_CONFIG', path)
    t.regex((error as Error).message, /unknown config key '.*no_such_key'; the nearest known key is '\w+'/, path)
  }
})

test('config: every key of the wrong type is refused by its path', async (t) => {
  t.true(values.length > 90)
  for (const [path, value] of values) {
    if (ignored.test(path)) continue
    const error = await build(at(path, typeof value === 'string' ? 7 : 'x'))
    t.is(codeOf(error), 'ERR_CONFIG', path)
    t.true((error as Error).message.includes(`deem.${path}`), `${path}: ${(error as Error).message}`)
  }
})

test('config: a key that is missing is named, unless it has a default', async (t) => {
  let missing = 0
  for (const [path] of values) {
    const error = await build(at(path, undefined))
    if (error === 'built') continue
    t.is(codeOf(error), 'ERR_CONFIG', path)
    // A default of published size may not fit the rest.
    if (!(error as Error).message.includes('lacks')) continue
    t.true((error as Error).message.includes(`lacks the key '${path.split('.').at(-1)}'`), (error as Error).message)
    missing++
  }
  t.is(missing, 42)
})

test('config: sizes of nothing and less are refused, never a crash', async (t) => {
  const may = /eps$|_prob$|^special_token_dict|loss_weights|beta_|steps_offset|sample_size|freq_shift/
  for (const [path, value] of values)
    for (const n of [0, -1]) {
      const isList = Array.isArray(value) && typeof value[0] === 'number'
      if (typeof value !== 'number' && !isList) continue
      const error = await build(at(path, isList ? value.map(() => n) : n))
      if (error === 'built') t.regex(path, may, `${path} = ${n}`)
      else t.is(codeOf(error), 'ERR_CONFIG', `${path} = ${n}: ${error}`)
    }
})

refusesConfig('deem', config, {
  'an unknown compat': [{ compat: 'offical' }, /compat' must be 'official' or 'paper' but is 'offical'/],
  'a compat that is no string': [{ compat: 1 }, /deem\.compat' must be a string/],
  'more ids in the language model than in all': [{ txt_vocab_size: 511 }, /txt_vocab_size 511.*llm.vocab_size 512/],
  'one id for pictures and their start': [
    { special_token_dict: { ...(config['special_token_dict'] as Json), soi_token_id: 513 } },
    /soi_token_id and image_token_id are both 513/,
  ],
  'an id beyond the vocabulary': [
    { special_token_dict: { ...(config['special_token_dict'] as Json), bos_token_id: 518 } },
    /id 518 is outside the vocabulary of 518/,
  ],
  'a chance that is no number': [{ uncond_prob: Number.NaN }, /'uncond_prob' must be a finite number but is NaN/],
  'a chance above one': [{ uncond_prob: 1.5 }, /uncond_prob.*1\.5/],
  'a list in place of an object': [{ sd: [] }, /deem\.sd' must be an object/],
  'encoder maps of another width': [
    at('convnext.adapter_dim', 16),
    /convnext.adapter_dim is 16.*image_embed_dim is 32/,
  ],
  'a resampler that reads another width': [
    at('visual_perceiver.encoder_hidden_size', 1408),
    /visual_perceiver.encoder_hidden_size is 1408.*image_embed_dim is 32/,
  ],
  'slots that are not the resampler’s queries': [
    at('num_img_token', 6),
    /visual_perceiver.num_queries is 5 but num_img_token is 6/,
  ],
  'an image decoder that reads another width': [
    at('image_perceiver.encoder_hidden_size', 32),
    /image_perceiver.encoder_hidden_size is 32 but llm.hidden_size is 64/,
  ],
  'an image decoder that writes another width': [
    at('image_perceiver.hidden_size', 64),
    /image_perceiver.hidden_size is 64 but sd.unet.cross_attention_dim is 32/,
  ],
  'a denoiser that conditions on another width': [at('sd.unet.cross_attention_dim', 64), /cross_attention_dim is 64/],
  'latents of other channels': [at('sd.vae.latent_channels', 8), /sd.unet.in_channels is 4 but sd.vae.latent_channels/],
})
