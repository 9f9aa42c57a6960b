/**
 * Cases on disk: a folder with `config.json`, or with `expected.json`, or one below `hf_layout`. Its kind is its place: the last
 * folder of its path, for `ops`, `modules`, `model` and `hf_layout` the last two.
 */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { readTensors } from '../files.js'
import { parsePythonJson } from '../json.js'
import { ops } from '../ops.js'
import { defaultDevice } from '../system.js'
import { Tensor } from '../tensor.js'
import type { ComputeType } from './compare.js'

export type Tensors = Record<string, Tensor>
export type Json = Record<string, unknown>

export interface Case {
  dir: string
  /** e.g. `ops/conv2d` */
  kind: string
  config: Json
  inputs: Tensors
  weights: Tensors
  outputs: Tensors
  grads: Tensors
  /** What floating inputs and parameters are cast to. */
  dtype: ComputeType
}

/** All case folders at or below the paths given, sorted. */
export function findCases(paths: readonly string[]): string[] {
  const found: string[] = []
  const visit = (dir: string) => {
    // A folder of weights is one case, whatever its parts are; their own config.json files are none of ours.
    if (placeOf(dir) === 'hf_layout') {
      found.push(dir)
      return
    }
    if (['config.json', 'expected.json'].some((file) => existsSync(join(dir, file)))) found.push(dir)
    for (const entry of readdirSync(dir, { withFileTypes: true })) if (entry.isDirectory()) visit(join(dir, entry.name))
  }
  for (const path of paths) {
    if (!existsSync(path) || !statSync(path).isDirectory()) throw new DeemError('ERR_IO', `'${path}' is no folder`)
    visit(resolve(path))
  }
  return [...new Set(found)].sort()
}

const placeOf = (dir: string) => basename(dirname(dir))

export function kindOf(dir: string): string {
  const place = placeOf(dir)
  return ['ops', 'modules', 'model', 'hf_layout'].includes(place) ? `${place}/${basename(dir)}` : basename(dir)
}

export async function loadCase(dir: string, dtype: ComputeType): Promise<Case> {
  const described = join(dir, 'config.json')
  const config = existsSync(described) ? (parsePythonJson(readFileSync(described, 'utf8')) as Json) : {}
  const read = async (file: string): Promise<Tensors> => {
    if (!existsSync(join(dir, file))) return {}
    const { tensors } = await readTensors(join(dir, file))
    return Object.fromEntries(
      Object.entries(tensors).map(([name, t]) => [name, t.dtype === 'f32' ? t.to(defaultDevice()) : t]),
    )
  }
  return {
    dir,
    kind: kindOf(dir),
    config,
    inputs: await read('inputs.safetensors'),
    weights: await read('weights.safetensors'),
    outputs: await read('outputs.safetensors'),
    grads: await read('grads.safetensors'),
    dtype,
  }
}

/** What a file in one of the two folders above a case holds for its kind; nothing where there is no file or no entry. */
export function besideCases<T>(dir: string, file: string, kind: string): T | undefined {
  for (const folder of [dirname(dir), dirname(dirname(dir))]) {
    const path = join(folder, file)
    if (!existsSync(path)) continue
    try {
      return (JSON.parse(readFileSync(path, 'utf8')) as { cases: Record<string, T> }).cases[kind]
    } catch (cause) {
      throw causedBy(cause, 'ERR_FORMAT', `'${path}' is damaged`)
    }
  }
  return undefined
}

/** The tensors whose name starts with `prefix`, without it. */
export function below(tensors: Tensors, prefix: string): Tensors {
  return Object.fromEntries(
    Object.entries(tensors).flatMap(([name, t]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), t]] : [])),
  )
}

export function need(tensors: Tensors, name: string): Tensor {
  const t = tensors[name]
  if (!t) throw new DeemError('ERR_FORMAT', `the case lacks the tensor '${name}'`)
  return t
}

export function nhwc(x: Tensor): Tensor {
  return ops.permute(x, [0, 2, 3, 1])
}
export function nchw(x: Tensor): Tensor {
  return ops.permute(x, [0, 3, 1, 2])
}

/** A trainable copy in the computation's dtype; not floating: the tensor itself. */
export function leaf(x: Tensor, dtype: ComputeType, grad = true): Tensor {
  if (x.dtype !== 'f32') return x
  const copy = dtype === 'f32' ? new Tensor(x.handle.detach()) : ops.cast(x, dtype)
  copy.requiresGrad = grad
  return copy
}
