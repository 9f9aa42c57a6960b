/** `loadDeem`: a model from weights as people have them. */
import { join } from 'node:path'
import { z } from 'zod'
import { parseConfig } from '../config.js'
import { causedBy, DeemError } from '../errors.js'
import { isJsonObject, type JsonObject, readJson } from '../json.js'
import { Deem } from '../models/deem.js'
import type { CreateOptions } from '../module.js'
import { Scope } from '../scope.js'
import type { CallOptions } from '../task.js'
import type { Tokenizer } from '../tokenizer/index.js'
import { assignPlan, isClean, planAssignment, type WeightsReport, weightsError } from './assign.js'
import { bundledFolder } from './bundled.js'
import { deemConfig } from './configs.js'
import { isFolder, openWeights } from './folder.js'
import { deemNames } from './names.js'
import { type Assembly, assemble, checkTokens, type DeemPieces, readTokenizer, transformersStems } from './pieces.js'

export interface LoadDeemOptions extends CreateOptions {
  /** Whether weights that are missing, unexpected or misshapen are an error (default) or listed in the report. */
  strict?: boolean
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

const pieceKeys = z.strictObject({
  config: z.record(z.string(), z.unknown()).optional(),
  llama: z.string().optional(),
  stableDiffusion: z.string().optional(),
  openClip: z.string().optional(),
})

/**
 * Builds a model and fills it from files, which are mapped and read one after another.
 *
 * @param source a DEEM folder (config.json; model.safetensors or pytorch_model.bin, whole or in shards with an index; a tokenizer if
 *   there is one), or the pieces of a new model. From pieces the rows of added tokens, and whatever no piece holds, start fresh from
 *   `seed`; the head knows added tokens by the bias -100 until `head_new` lifts them.
 *
 * Throws ERR_IO for files that are missing, ERR_FORMAT for broken ones, ERR_CONFIG for configurations that make no model, and one
 * ERR_WEIGHTS that lists all weights that are missing, unexpected or misshapen. Nothing is left in memory then. Progress counts
 * tensors.
 */
export async function loadDeem(source: string | DeemPieces, options: LoadDeemOptions = {}): Promise<LoadedDeem> {
  const { strict = true, signal, onProgress, ...create } = options
  const call: CallOptions = signal ? { signal } : {}
  signal?.throwIfAborted()
  const where = typeof source === 'string' ? `'${join(source, 'config.json')}'` : 'the model of these pieces'
  using scope = new Scope()
  const assembly =
    typeof source === 'string'
      ? await readFolder(bundledFolder(source) ?? source, call)
      : await assemble(parseConfig(pieceKeys, source, 'source') as DeemPieces, call)
  const { config, sources, tokenizer, negativePrompt: start } = assembly
  if (start) scope.keep(start)
  const model = scope.keep(await built(config, { ...create, ...call }, where))
  if (tokenizer) checkTokens(tokenizer, config, where)
  const plan = planAssignment(model, sources)
  if (start) {
    const shape = model.parameters().find((p) => p.name === negativePrompt)?.shape ?? []
    if (`${shape}` !== `${start.shape}`)
      plan.report.misshapen.push({ name: negativePrompt, shape, stored: start.shape, dtype: start.dtype })
    else model.assign(negativePrompt, start)
  }
  if (strict && !isClean(plan.report)) throw weightsError(nameOf(source), plan.report)
  await assignPlan(model, plan, { ...call, ...(onProgress && { onProgress }) })
  scope.release(model)
  return { model, config, ...(tokenizer && { tokenizer }), ...(!strict && { report: plan.report }) }
}

async function readFolder(folder: string, call: CallOptions): Promise<Assembly> {
  if (!(await isFolder(folder))) throw new DeemError('ERR_IO', `'${folder}' is no folder`)
  const path = join(folder, 'config.json')
  const stored = await readJson(path)
  if (stored['model_type'] === 'llama')
    throw new DeemError('ERR_CONFIG', `'${path}' is that of a LLaMA, not of a DEEM: load it as { llama: folder }`)
  const config = deemConfig(stored)
  const files = await openWeights(folder, transformersStems, call)
  const { llm, special_token_dict: tokens } = config
  const base = isJsonObject(llm) ? llm['vocab_size'] : undefined
  const pad = isJsonObject(tokens) ? tokens['pad_token_id'] : undefined
  const tokenizer = typeof base === 'number' ? await readTokenizer(folder, base, pad) : undefined
  return { config, sources: [{ files, naming: deemNames }], ...(tokenizer && { tokenizer }) }
}

async function built(config: JsonObject, options: CreateOptions, where: string): Promise<Deem> {
  try {
    return await Deem.build(config, options)
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
