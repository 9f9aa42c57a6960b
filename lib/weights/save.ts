/** `saveDeem`: weights as others read them. */
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, readdir, realpath, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { causedBy, DeemError } from '../errors.js'
import { type JsonObject, writeJson } from '../json.js'
import type { Deem } from '../models/deem.js'
import { ops } from '../ops.js'
import { Scope } from '../scope.js'
import type { Tensor } from '../tensor.js'
import type { Tokenizer } from '../tokenizer/index.js'
import { companions, extraJson, partsOf, vocabularyOf, type WeightLayout } from './layouts.js'
import { mayBeConvolution } from './names.js'
import { checkShardOptions, type ShardOptions, writeShards } from './shards.js'

export interface SaveDeemOptions extends ShardOptions {
  /** Default `deem`. */
  layout?: WeightLayout
  /** Names of the VAE's attention as diffusers had them before 0.15 and as published files still do: `deem`, `stable-diffusion`. */
  oldAttentionNames?: boolean
  /** A folder of the same layout whose tokenizer, text encoder and the like are copied: a model here holds none of these. */
  companionsFrom?: string
  /** Written beside the weights; layout `deem` only. */
  tokenizer?: Tokenizer
}

const headBias = 'text_decoder.head.bias'

/**
 * Writes a model's weights and their config.json under the names of the layout, in shards where they are large. Tensors go out one
 * at a time, cast on the way, so that no copy of the model is needed. A dtype that is not the model's is written from the f32 masters of
 * what was trained, see {@link Module.keepMasters}.
 *
 * Throws ERR_IO; ERR_VALUE for numbers beyond the range of the dtype; ERR_WEIGHTS where the layout cannot hold what was trained: a
 * LLaMA's head has no bias.
 */
export async function saveDeem(model: Deem, folder: string, options: SaveDeemOptions = {}): Promise<void> {
  using scope = new Scope()
  if ((options.layout ?? 'deem') !== 'deem' && model.parameters().some((p) => p.quantized))
    throw new DeemError('ERR_WEIGHTS', `the layout '${options.layout}' has no place for weights in few bits`)
  const parameters = new Map(model.parameters().map((p) => [p.name, scope.keep(model.view(p.name, options.dtype))]))
  // Shared tensors are stored under both names: readers that know no sharing find each.
  for (const [alias, name] of Object.entries(model.aliases())) parameters.set(alias, parameters.get(name) as Tensor)
  await writeLayout(parameters, { ...model.config }, folder, options)
}

/** @internal Throws ERR_DTYPE or ERR_VALUE for options that no layout, or not this one, can have. */
export function checkSaveOptions({
  layout = 'deem',
  oldAttentionNames = false,
  tokenizer,
  ...write
}: SaveDeemOptions): void {
  checkShardOptions(write)
  if (tokenizer && layout !== 'deem')
    throw new DeemError('ERR_VALUE', `a tokenizer with DEEM's tokens does not belong into the layout '${layout}'`)
  if (oldAttentionNames && layout !== 'deem' && layout !== 'stable-diffusion')
    throw new DeemError('ERR_VALUE', `oldAttentionNames are those of a VAE, which the layout '${layout}' lacks`)
}

/** @internal Writes parameters, by their names in a DEEM, as a folder of the layout. Gives the number of tensors. */
export async function writeLayout(
  parameters: ReadonlyMap<string, Tensor>,
  config: JsonObject,
  folder: string,
  options: SaveDeemOptions,
): Promise<number> {
  checkSaveOptions(options)
  const { layout = 'deem', oldAttentionNames = false, companionsFrom, tokenizer, ...write } = options
  const dtype = write.dtype ?? parameters.values().next().value?.dtype ?? 'f32'
  const parts = partsOf(layout, config, { dtype, oldAttentionNames })
  if (layout === 'llama') checkHeadBias(parameters.get(headBias), vocabularyOf(config))
  using scope = new Scope()
  const contents = parts.map(({ folder, stem, naming, config: json }): PartContents => {
    const tensors: Record<string, Tensor> = {}
    for (const [parameter, t] of parameters) {
      const name = naming.stored(parameter)
      if (name === undefined) continue
      tensors[name] = naming.leading?.(parameter)
        ? scope.keep(ops.slice(t, 0, 0, vocabularyOf(config)))
        : asMatrix(parameter, t, scope)
    }
    if (Object.keys(tensors).length === 0)
      throw new DeemError('ERR_WEIGHTS', `there are no weights for the layout '${layout}'`)
    return { folder, stem, tensors, ...(json && { config: json }) }
  })
  return await writeParts(contents, folder, write, async () => {
    if (companionsFrom !== undefined) await copyNamed(companionsFrom, folder, companions[layout], write.signal)
    for (const [path, json] of Object.entries(extraJson(layout, config))) {
      await makeFolder(dirname(join(folder, path)))
      await writeJson(join(folder, path), json)
    }
    if (tokenizer) await tokenizer.save(folder)
  })
}

/** @internal The same values without the [..., 1, 1] of what was stored as a convolution; diffusers reads matrices. */
export function asMatrix(parameter: string, t: Tensor, scope: Scope): Tensor {
  return mayBeConvolution(parameter) && t.shape.length === 4 ? scope.keep(ops.reshape(t, t.shape.slice(0, 2))) : t
}

/** Weights under the names they get in their files. */
export interface PartContents {
  /** Below the target. */
  folder: string
  /** What weight files begin with. */
  stem: string
  tensors: Record<string, Tensor>
  config?: JsonObject
}

/** @internal Writes weights part by part, then what belongs `beside` them, and their config.json last: a folder that has it is whole. */
export async function writeParts(
  parts: readonly PartContents[],
  folder: string,
  options: ShardOptions,
  beside: () => Promise<void>,
): Promise<number> {
  const { onProgress } = options
  const total = parts.reduce((sum, { tensors }) => sum + Object.keys(tensors).length, 0)
  let before = 0
  for (const { folder: below, stem, tensors } of parts) {
    await writeShards(join(folder, below), stem, tensors, {
      ...options,
      ...(onProgress && { onProgress: (n: number) => onProgress(before + n, total) }),
    })
    before += Object.keys(tensors).length
  }
  await beside()
  for (const part of parts) if (part.config) await writeJson(join(folder, part.folder, 'config.json'), part.config)
  return total
}

/** Throws ERR_WEIGHTS where a LLaMA's head, which has no bias, would answer differently. */
function checkHeadBias(bias: Tensor | undefined, vocabulary: number): void {
  if (!bias) return
  const at = bias.toFloat32().findIndex((v, id) => v !== 0 && id < vocabulary)
  if (at >= 0)
    throw new DeemError('ERR_WEIGHTS', `'${headBias}' is not 0 at id ${at}, and the head of a LLaMA has no bias`)
}

/** @internal Copies files and folders, by their paths below `from`, where they are there. */
export async function copyNamed(
  from: string,
  to: string,
  paths: readonly string[],
  signal?: AbortSignal,
): Promise<void> {
  try {
    if ((await realpath(from)) === (await realpath(to))) return
    for (const path of paths) {
      const there = await stat(join(from, path)).catch(() => undefined)
      if (there) await copyTree(join(from, path), join(to, path), there.isDirectory(), signal)
    }
  } catch (cause) {
    signal?.throwIfAborted()
    throw causedBy(cause, 'ERR_IO', `the files of '${from}' cannot be copied to '${to}'`)
  }
}

/** Links are followed: the caches of Hugging Face consist of them. An abort stops within a file. */
async function copyTree(from: string, to: string, folder: boolean, signal?: AbortSignal): Promise<void> {
  await mkdir(folder ? to : dirname(to), { recursive: true })
  if (!folder) return pipeline(createReadStream(from), createWriteStream(to), signal ? { signal } : {})
  for (const name of await readdir(from))
    await copyTree(join(from, name), join(to, name), (await stat(join(from, name))).isDirectory(), signal)
}

async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true })
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be made`)
  }
}
