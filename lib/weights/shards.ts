/** Writes weights as Hugging Face's libraries do: one safetensors file, or shards with an index. */
import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { writeTensors } from '../files.js'
import { writeJson } from '../json.js'
import type { DType } from '../native.js'
import type { CallOptions } from '../task.js'
import { elementBytes, type Tensor } from '../tensor.js'

export interface ShardOptions extends CallOptions {
  /** Of the floating tensors in the files. Default each one's own. */
  dtype?: DType
  /** Weights of more bytes than this are split, never within a tensor. Default 5e9. */
  maxShardBytes?: number
}

export function checkShardOptions({ dtype, maxShardBytes }: ShardOptions): void {
  if (dtype !== undefined && !['f32', 'bf16', 'f16'].includes(dtype))
    throw new DeemError('ERR_DTYPE', `weights are stored as f32, bf16 or f16 but dtype is '${dtype}'`)
  if (maxShardBytes !== undefined && !(maxShardBytes > 0))
    throw new DeemError('ERR_VALUE', `maxShardBytes must be above 0 but is ${maxShardBytes}`)
}

/**
 * Writes `STEM.safetensors`, or `STEM-00001-of-0000N.safetensors` and their index. Each file is complete or not there; weights
 * of that stem from before that no longer belong go last. Throws ERR_IO.
 */
export async function writeShards(
  folder: string,
  stem: string,
  tensors: Readonly<Record<string, Tensor>>,
  { dtype, maxShardBytes = 5e9, signal, onProgress }: ShardOptions = {},
): Promise<void> {
  checkShardOptions({ maxShardBytes, ...(dtype && { dtype }) })
  await onDisk(folder, () => mkdir(folder, { recursive: true }))
  const shards: { names: string[]; bytes: number }[] = []
  for (const [name, t] of Object.entries(tensors)) {
    const floating = t.dtype === 'f32' || t.dtype === 'bf16' || t.dtype === 'f16'
    const bytes = t.size * elementBytes[floating ? (dtype ?? t.dtype) : t.dtype]
    const last = shards.at(-1)
    if (last && last.bytes + bytes <= maxShardBytes) {
      last.names.push(name)
      last.bytes += bytes
    } else {
      shards.push({ names: [name], bytes })
    }
  }
  const number = (n: number) => String(n).padStart(5, '0')
  const files = shards.map((_, i) =>
    shards.length === 1 ? `${stem}.safetensors` : `${stem}-${number(i + 1)}-of-${number(shards.length)}.safetensors`,
  )
  const total = Object.keys(tensors).length
  let done = 0
  for (const [i, { names }] of shards.entries()) {
    const before = done
    const part = Object.fromEntries(names.map((name) => [name, tensors[name] as Tensor]))
    await writeTensors(join(folder, files[i] as string), part, {
      metadata: { format: 'pt' },
      ...(dtype && { dtype }),
      ...(signal && { signal }),
      ...(onProgress && { onProgress: (n: number) => onProgress(before + n, total) }),
    })
    done += names.length
    onProgress?.(done, total)
  }
  const index = `${stem}.safetensors.index.json`
  if (shards.length > 1)
    await writeJson(join(folder, index), {
      metadata: { total_size: shards.reduce((sum, { bytes }) => sum + bytes, 0) },
      weight_map: Object.fromEntries(shards.flatMap(({ names }, i) => names.map((name) => [name, files[i]]))),
    })
  await onDisk(folder, () => removeStale(folder, stem, shards.length > 1 ? [...files, index] : files))
}

/** A reader prefers the single file to shards: what an earlier save left would be read in place of what was written. */
async function removeStale(folder: string, stem: string, kept: readonly string[]): Promise<void> {
  const own = (name: string) =>
    name.startsWith(stem) && /^(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?$/.test(name.slice(stem.length))
  for (const name of await readdir(folder)) if (own(name) && !kept.includes(name)) await rm(join(folder, name))
}

async function onDisk<T>(folder: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${folder}' cannot be written`)
  }
}
