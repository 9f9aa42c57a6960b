/** The weight files of a folder as Hugging Face's libraries lay them out: one file, or shards with an index. */
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { mapTensors } from '../files.js'
import { isJsonObject, readJson } from '../json.js'
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
}

/**
 * The weight files of a folder, or the one file that `path` is. Of a folder the first of these that exists: `STEM.safetensors`,
 * shards with `*.safetensors.index.json`, `STEM.bin`, shards with `*.bin.index.json`; stems in the order given. Throws ERR_IO
 * where there is none or a shard is missing, ERR_FORMAT for an index that contradicts its shards.
 */
export async function openWeights(
  path: string,
  stems: readonly string[],
  call: CallOptions = {},
): Promise<WeightFile[]> {
  if (!(await isFolder(path))) return [await inspect(path, call)]
  const names = await namesIn(path)
  for (const ending of ['.safetensors', '.bin']) {
    const single = stems.map((stem) => stem + ending).find((name) => names.includes(name))
    if (single !== undefined) return [await inspect(join(path, single), call)]
    const index = pickIndex(path, names, stems, `${ending}.index.json`)
    if (index !== undefined) return openShards(path, index, call)
  }
  const wanted = stems.flatMap((stem) => [`${stem}.safetensors`, `${stem}.bin`])
  const others = names.filter((name) => /\.(?:safetensors|bin)$/.test(name))
  throw new DeemError(
    'ERR_IO',
    `'${path}' holds no weights: neither ${wanted.join(', ')} nor an index of shards${others.length > 0 ? `, only ${others.slice(0, 5).join(', ')}` : ''}`,
  )
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

function pickIndex(folder: string, names: string[], stems: readonly string[], ending: string): string | undefined {
  const usual = stems.map((stem) => stem + ending).find((name) => names.includes(name))
  if (usual !== undefined) return usual
  const others = names.filter((name) => name.endsWith(ending))
  if (others.length > 1)
    throw new DeemError('ERR_FORMAT', `'${folder}' holds several indexes of shards: ${others.join(', ')}`)
  return others[0]
}

async function openShards(folder: string, index: string, call: CallOptions): Promise<WeightFile[]> {
  const where = join(folder, index)
  const { weight_map: map } = await readJson(where)
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
