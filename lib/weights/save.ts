/** `saveDeem` and `convertFolder`: weights as others read them. */
import { existsSync } from 'node:fs'
import { cp, mkdir, readdir, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { mapTensors } from '../files.js'
import { type JsonObject, readJson, writeJson } from '../json.js'
import type { Deem } from '../models/deem.js'
import { ops } from '../ops.js'
import { Scope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import type { Tokenizer } from '../tokenizer/index.js'
import { deemConfig } from './configs.js'
import { openWeights } from './folder.js'
import { companions, extraJson, partsOf, vocabularyOf, type WeightLayout } from './layouts.js'
import { deemNames } from './names.js'
import { checkShardOptions, type ShardOptions, writeShards } from './shards.js'
import { transformersStems } from './source.js'

export interface SaveDeemOptions extends ShardOptions {
  /** Default `deem`. */
  layout?: WeightLayout
  /** Names of the VAE's attention as diffusers had them before 0.15 and as published files still do. Default false. */
  oldAttentionNames?: boolean
  /** A folder of the same layout whose tokenizer, text encoder and the like are copied: a model here holds none of these. */
  companionsFrom?: string
  /** Written beside the weights; layout `deem` only. */
  tokenizer?: Tokenizer
}

const headBias = 'text_decoder.head.bias'

/**
 * Writes a model's weights and their config.json under the names of the layout, in shards where they are large. Tensors go out one
 * at a time, cast on the way, so that no copy of the model is needed.
 *
 * Throws ERR_IO; ERR_VALUE for numbers beyond the range of the dtype; ERR_WEIGHTS where the layout cannot hold what was trained: a
 * LLaMA's head has no bias.
 */
export async function saveDeem(model: Deem, folder: string, options: SaveDeemOptions = {}): Promise<void> {
  using scope = new Scope()
  const parameters = new Map(model.parameters().map((p) => [p.name, scope.keep(model.view(p.name))]))
  // Shared tensors are stored under both names: readers that know no sharing find each.
  for (const [alias, name] of Object.entries(model.aliases())) parameters.set(alias, parameters.get(name) as Tensor)
  await writeLayout(parameters, { ...model.config }, folder, options)
}

/**
 * The same from the files of a DEEM folder, without building a model: bit for bit where the dtype stays. What is stored in the folder is
 * written, whether or not a model could be made of it. Throws ERR_IO, ERR_FORMAT, ERR_CONFIG and ERR_WEIGHTS like `loadDeem`.
 */
export async function convertFolder(source: string, target: string, options: SaveDeemOptions = {}): Promise<void> {
  const config = deemConfig(await readJson(join(source, 'config.json')))
  const call = options.signal ? { signal: options.signal } : {}
  if ((await realOf(source)) === (await realOf(target)))
    throw new DeemError('ERR_VALUE', `'${source}' cannot be converted in place`)
  using scope = new Scope()
  const parameters = new Map<string, Tensor>()
  const files = await openWeights(source, transformersStems, call)
  for (const { path } of files) {
    const { tensors } = await mapTensors(path, call)
    scope.keep(tensors)
    for (const [stored, t] of Object.entries(tensors))
      for (const name of deemNames.targets(stored) ?? []) {
        if (parameters.has(name)) throw new DeemError('ERR_FORMAT', `'${source}' stores '${name}' twice`)
        parameters.set(name, t)
      }
  }
  await writeLayout(parameters, config, target, {
    ...(layoutKeepsTokens(options) && { companionsFrom: source }),
    ...options,
  })
}

/** Only a DEEM can use the tokenizer of a DEEM. */
function layoutKeepsTokens({ layout = 'deem' }: SaveDeemOptions): boolean {
  return layout === 'deem'
}

async function writeLayout(
  parameters: ReadonlyMap<string, Tensor>,
  config: JsonObject,
  folder: string,
  options: SaveDeemOptions,
): Promise<void> {
  const { layout = 'deem', oldAttentionNames = false, companionsFrom, tokenizer, ...write } = options
  checkShardOptions(write)
  if (tokenizer && layout !== 'deem')
    throw new DeemError('ERR_VALUE', `a tokenizer with DEEM's tokens does not belong into the layout '${layout}'`)
  const dtype = write.dtype ?? parameters.values().next().value?.dtype ?? 'f32'
  const parts = partsOf(layout, config, { dtype, oldAttentionNames })
  if (layout === 'llama') checkHeadBias(parameters.get(headBias), vocabularyOf(config))
  using scope = new Scope()
  const contents = parts.map((part) => {
    const named: Record<string, Tensor> = {}
    for (const [parameter, t] of parameters) {
      const name = part.naming.stored(parameter)
      if (name === undefined) continue
      named[name] = part.naming.leading?.(parameter) ? scope.keep(ops.slice(t, 0, 0, vocabularyOf(config))) : t
    }
    if (Object.keys(named).length === 0)
      throw new DeemError('ERR_WEIGHTS', `there are no weights for the layout '${layout}'`)
    return named
  })
  const total = contents.reduce((sum, named) => sum + Object.keys(named).length, 0)
  let done = 0
  for (const [i, part] of parts.entries()) {
    const before = done
    const named = contents[i] as Record<string, Tensor>
    await writeShards(join(folder, part.folder), part.stem, named, {
      ...write,
      ...(write.onProgress && { onProgress: (n: number) => write.onProgress?.(before + n, total) }),
    })
    done += Object.keys(named).length
  }
  if (companionsFrom !== undefined) await copyCompanions(companionsFrom, folder, layout)
  for (const [path, json] of Object.entries(extraJson(layout, config))) {
    await makeFolder(join(folder, path, '..'))
    await writeJson(join(folder, path), json)
  }
  if (tokenizer) await tokenizer.save(folder)
  // Last: a folder with its config is whole.
  for (const part of parts) if (part.config) await writeJson(join(folder, part.folder, 'config.json'), part.config)
}

/** Throws ERR_WEIGHTS where a LLaMA's head, which has no bias, would answer differently. */
function checkHeadBias(bias: Tensor | undefined, vocabulary: number): void {
  if (!bias) return
  const at = bias.toFloat32().findIndex((v, id) => v !== 0 && id < vocabulary)
  if (at >= 0)
    throw new DeemError('ERR_WEIGHTS', `'${headBias}' is not 0 at id ${at}, and the head of a LLaMA has no bias`)
}

async function copyCompanions(from: string, to: string, layout: WeightLayout): Promise<void> {
  if ((await realOf(from)) === (await realOf(to)) && existsSync(from)) return
  try {
    const there = await readdir(from)
    // Links are followed: the caches of Hugging Face consist of them.
    for (const name of companions[layout])
      if (there.includes(name)) await cp(join(from, name), join(to, name), { recursive: true, dereference: true })
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `the files of '${from}' cannot be copied to '${to}'`)
  }
}

async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true })
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be made`)
  }
}

/** Where a path leads; undefined where nothing is. */
async function realOf(path: string): Promise<string | undefined> {
  return realpath(path).catch(() => undefined)
}
