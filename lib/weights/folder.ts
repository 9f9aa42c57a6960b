/** The weight files of a folder as Hugging Face's libraries lay them out: one file, or shards with an index. */
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { mapTensors } from '../files.js'
import { isJsonObject, type JsonObject, readJson } from '../json.js'
import type { DType } from '../native.js'
import type { CallOptions } from '../task.js'

/** A tensor as the header of its file describes it. */
export interface Stored {
  name: string
  dtype: DType
  shape: number[]
}

export interface WeightFile {
  path: string
  tensors: Stored[]
  /** Whether it is of the variant that was asked for. */
  ofVariant?: boolean
}

/** What is read of a folder that holds its weights more than once. */
export interface VariantOptions extends CallOptions {
  /** As in `model.fp16.safetensors`: preferred where a folder has it. */
  variant?: string | undefined
}

/** One of the two. */
export interface WeightChoice {
  file?: string
  /** Of shards. */
  index?: string
  /** Whether it is of the variant that was asked for. */
  ofVariant: boolean
}

/**
 * The weights to read of a folder that holds these names: the first of `STEM.safetensors`, shards with `*.safetensors.index.json`,
 * `STEM.bin`, shards with `*.bin.index.json`, stems in the order given; before all of these the same of the variant. Throws ERR_IO
 * where there are none, ERR_FORMAT where there are several indexes of unknown stems.
 */
export function chooseWeights(
  where: string,
  names: readonly string[],
  stems: readonly string[],
  variant?: string,
): WeightChoice {
  if (variant !== undefined && !/^[\w-]+$/.test(variant))
    throw new DeemError('ERR_VALUE', `a variant is a word as fp16 but is ${JSON.stringify(variant)}`)
  for (const v of variant === undefined ? [''] : [`.${variant}`, ''])
    for (const ending of ['.safetensors', '.bin']) {
      const ofVariant = v !== ''
      const file = stems.map((stem) => stem + v + ending).find((name) => names.includes(name))
      if (file !== undefined) return { file, ofVariant }
      const index = pickIndex(where, names, stems, `${ending}.index${v}.json`)
      if (index !== undefined) return { index, ofVariant }
    }
  const wanted = stems.flatMap((stem) => [`${stem}.safetensors`, `${stem}.bin`])
  const variants = variantsIn(names, stems)
  const others = names.filter((name) => /\.(?:safetensors|bin)$/.test(name)).slice(0, 5)
  const only =
    variants.length > 0
      ? `, only the variant${variants.length > 1 ? 's' : ''} ${variants.join(', ')}: ask for ${variants.length > 1 ? 'one' : 'it'} as \`variant\``
      : others.length > 0
        ? `, only ${others.join(', ')}`
        : ''
  throw new DeemError(
    'ERR_IO',
    `'${where}' holds no weights: neither ${wanted.join(', ')} nor an index of shards${only}`,
  )
}

function variantsIn(names: readonly string[], stems: readonly string[]): string[] {
  const found = names.flatMap((name) => {
    const stem = stems.find((s) => name.startsWith(`${s}.`) || name.startsWith(`${s}-`))
    const rest = stem === undefined ? '' : name.slice(stem.length)
    const [, ofFile, ofIndex] =
      /^(?:-\d{5}-of-\d{5})?\.([\w-]+?)(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)$|^\.(?:safetensors|bin)\.index\.([\w-]+)\.json$/.exec(
        rest,
      ) ?? []
    return ofFile ?? ofIndex ?? []
  })
  return [...new Set(found)].sort()
}

/** The weight files of a folder, by {@link chooseWeights}, or the one file that `path` is. Throws ERR_IO too where a shard is missing. */
export async function openWeights(
  path: string,
  stems: readonly string[],
  options: VariantOptions = {},
): Promise<WeightFile[]> {
  const { variant, ...call } = options
  if (!(await isFolder(path))) return [await inspect(path, call)]
  const { file, index, ofVariant } = chooseWeights(path, await namesIn(path), stems, variant)
  const files =
    index === undefined ? [await inspect(join(path, file as string), call)] : await openShards(path, index, call)
  return files.map((f) => ({ ...f, ofVariant }))
}

/** Throws ERR_IO where a variant was asked for and no part of a source has it. */
export function checkVariant(what: string, files: readonly WeightFile[], variant: string | undefined): void {
  if (variant !== undefined && !files.some(({ ofVariant }) => ofVariant))
    throw new DeemError('ERR_IO', `${what} holds no weights of the variant '${variant}'`)
}

/** Whether a folder lies there. Throws ERR_IO where nothing does. */
export async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory()
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be read`)
  }
}

/** Throws ERR_IO for what is no folder. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).sort()
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${folder}' cannot be read`)
  }
}

function pickIndex(
  folder: string,
  names: readonly string[],
  stems: readonly string[],
  ending: string,
): string | undefined {
  const usual = stems.map((stem) => stem + ending).find((name) => names.includes(name))
  if (usual !== undefined) return usual
  const others = names.filter((name) => name.endsWith(ending))
  if (others.length > 1)
    throw new DeemError('ERR_FORMAT', `'${folder}' holds several indexes of shards: ${others.join(', ')}`)
  return others[0]
}

/** The shards an index names, each with the tensors it is to hold. Throws ERR_FORMAT. */
export function shardsOf(where: string, { weight_map: map }: JsonObject): Map<string, string[]> {
  if (!isJsonObject(map)) throw new DeemError('ERR_FORMAT', `'${where}' lacks the object 'weight_map'`)
  const shards = new Map<string, string[]>()
  for (const [tensor, shard] of Object.entries(map)) {
    // A shard lies beside its index; anything else could read any file of the machine.
    if (typeof shard !== 'string' || !/^[\w.+-]*[\w+-]\.(?:safetensors|bin)$/.test(shard))
      throw new DeemError(
        'ERR_FORMAT',
        `'${where}': '${tensor}' lies in ${JSON.stringify(shard)}, which is no shard's name`,
      )
    const list = shards.get(shard)
    if (list) list.push(tensor)
    else shards.set(shard, [tensor])
  }
  return shards
}

async function openShards(folder: string, index: string, call: CallOptions): Promise<WeightFile[]> {
  const where = join(folder, index)
  const shards = shardsOf(where, await readJson(where))
  const files: WeightFile[] = []
  const owner = new Map<string, string>()
  for (const [shard, promised] of [...shards].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const file = await inspect(join(folder, shard), call)
    for (const { name } of file.tensors) {
      const other = owner.get(name)
      if (other !== undefined)
        throw new DeemError('ERR_FORMAT', `'${where}': both ${other} and ${shard} hold '${name}'`)
      owner.set(name, shard)
    }
    const lost = promised.find((name) => owner.get(name) !== shard)
    if (lost !== undefined)
      throw new DeemError('ERR_FORMAT', `'${where}' promises '${lost}' in ${shard}, which lacks it`)
    files.push(file)
  }
  return files
}

/** What a file holds. Nothing but its description is read. */
async function inspect(path: string, call: CallOptions): Promise<WeightFile> {
  const signal = call.signal && { signal: call.signal }
  const { tensors } = await mapTensors(path, signal)
  const described = Object.entries(tensors).map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape }))
  for (const t of Object.values(tensors)) t.dispose()
  return { path, tensors: described }
}
