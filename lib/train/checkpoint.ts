import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import type { Module } from '../module.js'
import type { AdamW } from './adamw.js'

/** What a checkpoint holds besides its tensors: plain JSON. */
export type CheckpointState = Record<string, unknown>

/**
 * Writes a folder with each model's weights (`NAME.safetensors`), the optimizer's moments and `state.json`. The folder is written
 * beside the old one and swapped in whole, so a crash leaves one that is complete. Continuing from it gives the same bits.
 * Throws ERR_IO, changing nothing, where `dir` holds something that is no checkpoint.
 */
export async function saveCheckpoint(
  dir: string,
  models: Record<string, Module>,
  optimizer: AdamW | null,
  state: CheckpointState,
): Promise<void> {
  checkReplaceable(dir)
  const { path, fresh, old } = placesOf(dir)
  onDisk(`'${fresh}' cannot be written`, () => {
    rmSync(fresh, { recursive: true, force: true })
    mkdirSync(fresh, { recursive: true })
  })
  for (const [name, model] of Object.entries(models)) await model.save(join(fresh, `${name}.safetensors`))
  if (optimizer) await optimizer.save(join(fresh, 'optimizer.safetensors'))
  onDisk(`'${path}' cannot be replaced`, () => {
    // Last, so that a folder with a state is whole.
    writeFileSync(join(fresh, stateFile), JSON.stringify(state), { flush: true })
    rmSync(old, { recursive: true, force: true })
    if (existsSync(path)) renameSync(path, old)
    renameSync(fresh, path)
    rmSync(old, { recursive: true, force: true })
  })
}

/** Whether a complete checkpoint lies there; finishes a swap that a crash cut off. */
export function hasCheckpoint(dir: string): boolean {
  const { path, fresh, old } = placesOf(dir)
  // The newer one first, if it was finished.
  const left = existsSync(path) ? undefined : [fresh, old].find(isWhole)
  if (left) onDisk(`'${left}' cannot become '${path}'`, () => renameSync(left, path))
  return existsSync(join(path, stateFile))
}

/** Reads a checkpoint into models and an optimizer of the same make; returns its state. A damaged one is an error and stays as it is. */
export async function loadCheckpoint(
  dir: string,
  models: Record<string, Module>,
  optimizer: AdamW | null,
): Promise<CheckpointState> {
  const { path } = placesOf(dir)
  if (!hasCheckpoint(dir)) throw new DeemError('ERR_IO', `there is no checkpoint in '${path}'`)
  const state = readState(path)
  for (const [name, model] of Object.entries(models)) await model.load(join(path, `${name}.safetensors`))
  if (optimizer) await optimizer.load(join(path, 'optimizer.safetensors'))
  return state
}

/** @internal Throws ERR_IO where writing a checkpoint would replace something else. */
export function checkReplaceable(dir: string): void {
  const { path } = placesOf(dir)
  const other = onDisk(
    `'${path}' cannot hold a checkpoint`,
    () => existsSync(path) && readdirSync(path).length > 0 && !existsSync(join(path, stateFile)),
  )
  if (other) throw new DeemError('ERR_IO', `'${path}' holds something that is no complete checkpoint; it is left alone`)
}

const stateFile = 'state.json'

function placesOf(dir: string): { path: string; fresh: string; old: string } {
  const path = resolve(dir)
  return { path, fresh: `${path}.new`, old: `${path}.old` }
}

function readState(path: string): CheckpointState {
  const file = join(path, stateFile)
  const text = onDisk(`'${file}' cannot be read`, () => readFileSync(file, 'utf8'))
  let state: unknown
  try {
    state = JSON.parse(text)
  } catch (error) {
    throw causedBy(error, 'ERR_FORMAT', `'${file}' is damaged`)
  }
  if (typeof state !== 'object' || state === null) throw new DeemError('ERR_FORMAT', `'${file}' holds no object`)
  return state as CheckpointState
}

function isWhole(path: string): boolean {
  try {
    readState(path)
    return true
  } catch {
    return false
  }
}

/** Errors of the file system as ERR_IO. */
function onDisk<T>(what: string, run: () => T): T {
  try {
    return run()
  } catch (error) {
    throw causedBy(error, 'ERR_IO', what)
  }
}
