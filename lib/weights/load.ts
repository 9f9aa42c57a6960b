/** `loadDeem`: a model from weights as people have them. */
import { join } from 'node:path'
import { lazySchema, parseConfig } from '../config.js'
import { causedBy, DeemError } from '../errors.js'
import { isJsonObject, type JsonObject, readJson } from '../json.js'
import { Deem } from '../models/deem.js'
import type { CreateOptions, NameMatch } from '../module.js'
import { Scope } from '../scope.js'
import type { CallOptions } from '../task.js'
import type { Tokenizer } from '../tokenizer/index.js'
import { assignPlan, isClean, planAssignment, type WeightsReport, weightsError } from './assign.js'
import { deemConfig } from './configs.js'
import { checkVariant, isFolder, openWeights, type VariantOptions } from './folder.js'
import { deemNames } from './names.js'
import { type Assembly, assemble, checkTokens, type DeemPieces, readTokenizer } from './pieces.js'
import { type QuantizeOption, quantizedConfig } from './quantization.js'
import { locate, notDeem, type SourceOptions, transformersStems } from './source.js'

export interface LoadDeemOptions extends CreateOptions, SourceOptions {
  /** Whether weights that are missing, unexpected or misshapen are an error (default) or listed in the report. */
  strict?: boolean
  /** Weights of linear layers in 8 or 4 bits, brought there one after another while they are read. */
  quantize?: QuantizeOption
  /** Weights of a bf16 or f16 model that keep what the files hold in f32 as well, for training: see {@link Module.keepMasters}. */
  masters?: NameMatch
  /** Weights that are kept a second time for faster products where this machine has those: see {@link Module.prepack}. */
  prepack?: NameMatch
}

export interface LoadedDeem {
  model: Deem
  /** Where the folder has one. */
  tokenizer?: Tokenizer
  /** What the model was built with. */
  config: Record<string, unknown>
  /** With `strict: false`. What is listed as missing or misshapen starts fresh. */
  report?: WeightsReport
}

const negativePrompt = 'image_decoder.neg_prompt_embeds'

const pieceKeys = lazySchema((z) =>
  z.strictObject({
    config: z.record(z.string(), z.unknown()).optional(),
    llama: z.string().optional(),
    stableDiffusion: z.string().optional(),
    openClip: z.string().optional(),
  }),
)
const pieceKinds = { llama: 'llama', stableDiffusion: 'stable-diffusion', openClip: 'open-clip' } as const

/**
 * Builds a model and fills it from files, which are mapped and read one after another.
 *
 * @param source a DEEM folder (config.json; model.safetensors or pytorch_model.bin, whole or in shards with an index; a tokenizer if
 *   there is one), or the pieces of a new model. Where no such path exists, an id of the Hugging Face hub: `org/name` or
 *   `org/name@revision`, of which what is needed is fetched into the cache that Python's libraries use, too. From pieces the rows of added tokens, and whatever no piece holds, start fresh from
 *   `seed`; the head knows added tokens by the bias -100 until `head_new` lifts them.
 *
 * Throws ERR_IO for files that are missing, ERR_FORMAT for broken ones, ERR_CONFIG for configurations that make no model, and one
 * ERR_WEIGHTS that lists all weights that are missing, unexpected or misshapen. Nothing is left in memory then. Progress counts
 * tensors; that of `hub` bytes. The hub's failures are ERR_IO, and ERR_FORMAT for answers and files that are not what they must be;
 * what came of a file before is gone on with the next time.
 */
export async function loadDeem(source: string | DeemPieces, options: LoadDeemOptions = {}): Promise<LoadedDeem> {
  const { strict = true, signal, onProgress, variant, hub, quantize, masters, prepack, ...create } = options
  const call: CallOptions = signal ? { signal } : {}
  signal?.throwIfAborted()
  const place = await placeOf(source, { variant, hub, ...call })
  const where = typeof place === 'string' ? `'${join(place, 'config.json')}'` : 'the model of these pieces'
  using scope = new Scope()
  const reading = { variant, ...call }
  const assembly = typeof place === 'string' ? await readFolder(place, reading) : await assemble(place, reading)
  const { sources, tokenizer, negativePrompt: start } = assembly
  const config = quantize === undefined ? assembly.config : quantizedConfig(assembly.config, quantize)
  if (start) scope.keep(start)
  checkVariant(
    nameOf(source),
    sources.flatMap(({ files }) => files),
    variant,
  )
  const model = scope.keep(await built(config, { ...create, ...call }, where))
  if (tokenizer) checkTokens(tokenizer, config, where)
  const plan = planAssignment(model, sources)
  const shape = model.parameters().find((p) => p.name === negativePrompt)?.shape ?? []
  const starts = start && `${shape}` === `${start.shape}`
  if (start && !starts)
    plan.report.misshapen.push({ name: negativePrompt, shape, stored: start.shape, dtype: start.dtype })
  if (strict && !isClean(plan.report)) throw weightsError(nameOf(source), plan.report)
  await model.initialize(plan.fresh, call)
  if (masters !== undefined) model.keepMasters(masters)
  if (starts) model.assign(negativePrompt, start)
  await assignPlan(model, plan, { ...call, ...(onProgress && { onProgress }) })
  if (prepack !== undefined) await model.prepack(prepack, call)
  scope.release(model)
  return { model, config, ...(tokenizer && { tokenizer }), ...(!strict && { report: plan.report }) }
}

/** The same with paths in place of ids of the hub. */
async function placeOf(source: string | DeemPieces, options: SourceOptions): Promise<string | DeemPieces> {
  if (typeof source === 'string') return (await locate([{ source, kind: 'deem' }], options))[0] as string
  const pieces: DeemPieces = { ...(parseConfig(pieceKeys, source, 'source') as DeemPieces) }
  const given = Object.entries(pieceKinds).flatMap(([key, kind]) => {
    const piece = pieces[key as keyof typeof pieceKinds]
    return piece === undefined ? [] : [{ key: key as keyof typeof pieceKinds, source: piece, kind }]
  })
  const paths = await locate(given, options)
  for (const [i, { key }] of given.entries()) pieces[key] = paths[i] as string
  return pieces
}

async function readFolder(folder: string, call: VariantOptions): Promise<Assembly> {
  if (!(await isFolder(folder))) throw new DeemError('ERR_IO', `'${folder}' is no folder`)
  const path = join(folder, 'config.json')
  const stored = await readJson(path)
  if (stored['model_type'] === 'llama') throw notDeem(`'${folder}'`, 'llama')
  const config = deemConfig(stored)
  const files = await openWeights(folder, transformersStems, call)
  const { llm, special_token_dict: tokens } = config
  const base = isJsonObject(llm) ? llm['vocab_size'] : undefined
  const pad = isJsonObject(tokens) ? tokens['pad_token_id'] : undefined
  const tokenizer = typeof base === 'number' ? await readTokenizer(folder, base, pad) : undefined
  return { config, sources: [{ files, naming: deemNames() }], ...(tokenizer && { tokenizer }) }
}

async function built(config: JsonObject, options: CreateOptions, where: string): Promise<Deem> {
  try {
    return await Deem.uninitialized(config, options)
  } catch (cause) {
    if (DeemError.isInstance(cause) && cause.code === 'ERR_CONFIG') throw causedBy(cause, 'ERR_CONFIG', where)
    throw cause
  }
}

function nameOf(source: string | DeemPieces): string {
  if (typeof source === 'string') return `'${source}'`
  const { llama, stableDiffusion, openClip } = source
  return [llama, stableDiffusion, openClip]
    .filter((piece) => piece !== undefined)
    .map((piece) => `'${piece}'`)
    .join(' with ')
}
