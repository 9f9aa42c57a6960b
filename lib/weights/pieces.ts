/** A DEEM model from the models it is put together from: a LLaMA, a Stable Diffusion and a ConvNeXt of open_clip. */
import { join } from 'node:path'
import { DeemError } from '../errors.js'
import { type JsonObject, readJson } from '../json.js'
import { Scope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import { addedTokens, Tokenizer } from '../tokenizer/index.js'
import type { WeightSource } from './assign.js'
import { diffusersConfig, llamaConfig, merge } from './configs.js'
import { namesIn, openWeights, type VariantOptions, type WeightFile } from './folder.js'
import { llamaNames, openClipNames, unetNames, vaeNames } from './names.js'
import { emptyPrompt } from './prompt.js'
import { diffusersStems, openClipStems, transformersStems } from './source.js'

/** Where the pieces lie, as paths or ids of the hub (`org/name` or `org/name@revision`); what is left out starts fresh. */
export interface DeemPieces {
  /** Keys of the model's configuration: what the pieces do not say, and what shall differ from what they say. */
  config?: object
  /** A Hugging Face LLaMA or Vicuna folder: config.json, weights, and a tokenizer if it has one. */
  llama?: string
  /** A diffusers Stable Diffusion folder: unet, vae, scheduler, text_encoder, tokenizer. */
  stableDiffusion?: string
  /** An open_clip weight file of a ConvNeXt, or its folder; only `visual.*` is used. */
  openClip?: string
}

/** What is known before the model exists. */
export interface Assembly {
  config: JsonObject
  sources: WeightSource[]
  tokenizer?: Tokenizer
  /** f32 [1, Q, C]: how `neg_prompt_embeds` start. The caller disposes it. */
  negativePrompt?: Tensor
}

/** Reads the configurations and the headers of the pieces. */
export async function assemble(pieces: DeemPieces, call: VariantOptions): Promise<Assembly> {
  const given = (pieces.config ?? {}) as JsonObject
  let config: JsonObject = {}
  const sources: WeightSource[] = []
  let tokenizer: Tokenizer | undefined
  if (pieces.llama !== undefined) {
    const own = await readLlama(pieces.llama, given, call)
    config = merge(config, own.config)
    sources.push(own.source)
    tokenizer = own.tokenizer
  }
  if (pieces.openClip !== undefined) {
    const files = await openWeights(pieces.openClip, openClipStems, call)
    const convnext = towerSizes(files)
    if (convnext) config = merge(config, { convnext })
    sources.push({ files, naming: openClipNames })
  }
  using scope = new Scope()
  let negativePrompt: Tensor | undefined
  if (pieces.stableDiffusion !== undefined) {
    const folder = pieces.stableDiffusion
    const part = async (kind: 'unet' | 'vae' | 'scheduler', file = 'config.json') =>
      diffusersConfig(kind, await readJson(join(folder, kind, file)))
    const sd = {
      unet: await part('unet'),
      vae: await part('vae'),
      scheduler: await part('scheduler', 'scheduler_config.json'),
    }
    config = merge(config, { sd })
    for (const [name, naming] of [['unet', unetNames] as const, ['vae', vaeNames()] as const])
      sources.push({ files: await openWeights(join(folder, name), diffusersStems, call), naming })
    const { ids, embeds } = await emptyPrompt(folder, call)
    ids.dispose()
    negativePrompt = scope.keep(embeds)
  }
  scope.release(negativePrompt)
  return {
    config: merge(config, given),
    sources,
    ...(tokenizer && { tokenizer }),
    ...(negativePrompt && { negativePrompt }),
  }
}

async function readLlama(folder: string, given: JsonObject, call: VariantOptions) {
  const path = join(folder, 'config.json')
  const stored = await readJson(path)
  const llm = llamaConfig(stored, path)
  const files = await openWeights(folder, transformersStems, call)
  const headless = !files.some((f) => f.tensors.some((t) => t.name === 'lm_head.weight'))
  const vocabulary = llm['vocab_size'] as number
  const tokens = given['special_token_dict'] as Record<string, number> | undefined
  const tokenizer = await readTokenizer(folder, vocabulary, tokens?.['pad_token_id'] ?? idOf(stored, 'pad_token_id'))
  const size = vocabulary + addedTokens.length
  const config: JsonObject = {
    llm,
    txt_vocab_size: tokenizer ? Math.max(size, tokenizer.vocabSize) : size,
    special_token_dict: tokenizer ? tokensOf(tokenizer) : usualTokens(stored, vocabulary),
  }
  const naming = llamaNames(stored['tie_word_embeddings'] === true && headless)
  return { config, tokenizer, source: { files, naming, vocabulary } }
}

/** The tokenizer of a folder, if it has one. `base`: where DEEM's own tokens begin. */
export async function readTokenizer(folder: string, base: number, pad: unknown): Promise<Tokenizer | undefined> {
  const names = await namesIn(folder)
  if (!names.includes('tokenizer.json') && !names.includes('tokenizer.model')) return undefined
  return Tokenizer.load(folder, { baseVocabSize: base, ...(typeof pad === 'number' && { padId: pad }) })
}

const tokenKeys = {
  refleft_token_id: '<ref>',
  refright_token_id: '</ref>',
  boxleft_token_id: '<box>',
  boxright_token_id: '</box>',
} as const

function tokensOf(tokenizer: Tokenizer): JsonObject {
  const { bos, eos, pad, soi, image } = tokenizer.ids
  return {
    bos_token_id: bos,
    eos_token_id: eos,
    pad_token_id: pad,
    soi_token_id: soi,
    image_token_id: image,
    ...Object.fromEntries(Object.entries(tokenKeys).map(([key, token]) => [key, tokenizer.id(token)])),
  }
}

/** An id of a config.json: some name several, of which the first counts; old LLaMAs say -1 for none. */
function idOf(stored: JsonObject, key: string): number | undefined {
  const value = stored[key]
  const id: unknown = Array.isArray(value) ? value[0] : value
  return typeof id === 'number' && id >= 0 ? id : undefined
}

/** Without a tokenizer: the ids the config names, and DEEM's tokens after the vocabulary. */
function usualTokens(stored: JsonObject, vocabulary: number): JsonObject {
  return {
    bos_token_id: idOf(stored, 'bos_token_id') ?? 1,
    eos_token_id: idOf(stored, 'eos_token_id') ?? 2,
    pad_token_id: idOf(stored, 'pad_token_id') ?? 0,
    soi_token_id: vocabulary,
    image_token_id: vocabulary + 1,
    ...Object.fromEntries(Object.keys(tokenKeys).map((key, i) => [key, vocabulary + 2 + i])),
  }
}

/** Throws ERR_CONFIG where tokenizer and model mean different ids. */
export function checkTokens(tokenizer: Tokenizer, config: JsonObject, where: string): void {
  const tokens = config['special_token_dict'] as JsonObject
  for (const [key, id] of Object.entries(tokensOf(tokenizer)))
    if (tokens[key] !== undefined && tokens[key] !== id)
      throw new DeemError('ERR_CONFIG', `${where}: ${key} is ${tokens[key]} but the tokenizer says ${id}`)
}

/** open_clip's files come without sizes: they are those of the weights. Undefined where those are no ConvNeXt's. */
function towerSizes(files: readonly WeightFile[]): JsonObject | undefined {
  const shapes = new Map(files.flatMap((f) => f.tensors.map((t) => [t.name, t.shape] as const)))
  const depths: number[] = []
  const dims: number[] = []
  for (let stage = 0; ; stage++) {
    const block = (i: number) => shapes.get(`visual.trunk.stages.${stage}.blocks.${i}.gamma`)
    const width = block(0)?.[0]
    if (width === undefined) break
    let depth = 1
    while (block(depth)) depth++
    depths.push(depth)
    dims.push(width)
  }
  const embed = shapes.get('visual.head.mlp.fc2.weight')?.[0]
  const patch = shapes.get('visual.trunk.stem.0.weight')?.[3]
  return dims.length > 0 && embed !== undefined && patch !== undefined
    ? { depths, dims, embed_dim: embed, ...(patch !== 4 && { patch_size: patch }) }
    : undefined
}
