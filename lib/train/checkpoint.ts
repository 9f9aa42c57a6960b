import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DeemError } from '../errors.js'
import type { Module } from '../module.js'
import type { AdamW } from './adamw.js'

/** What a checkpoint holds besides its tensors: plain JSON. */
export type CheckpointState = Record<string, unknown>

/**
 * Writes a folder with each model's weights (`NAME.safetensors`), the optimizer's moments and `state.json`. The folder is written
 * beside the old one and swapped in whole, so a crash leaves one that is complete. Continuing from it gives the same bits.
 */
export async function saveCheckpoint(
  dir: string,
  models: Record<string, Module>,
  optimizer: AdamW | null,
  state: CheckpointState,
): Promise<void> {
  const fresh = `${dir}.new`
  const old = `${dir}.old`
  rmSync(fresh, { recursive: true, force: true })
  mkdirSync(fresh, { recursive: true })
  for (const [name, model] of Object.entries(models)) await model.save(join(fresh, `${name}.safetensors`))
  if (optimizer) await optimizer.save(join(fresh, 'optimizer.safetensors'))
  writeFileSync(join(fresh, 'state.json'), JSON.stringify(state))
  rmSync(old, { recursive: true, force: true })
  if (existsSync(dir)) renameSync(dir, old)
  renameSync(fresh, dir)
  rmSync(old, { recursive: true, force: true })
}

/** Whether a complete checkpoint lies there; finishes a swap that a crash cut off. */
export function hasCheckpoint(dir: string): boolean {
  if (!existsSync(dir) && existsSync(join(`${dir}.old`, 'state.json'))) renameSync(`${dir}.old`, dir)
  return existsSync(join(dir, 'state.json'))
}

/** Reads a checkpoint into models and an optimizer of the same make; returns its state. */
export async function loadCheckpoint(
  dir: string,
  models: Record<string, Module>,
  optimizer: AdamW | null,
): Promise<CheckpointState> {
  if (!hasCheckpoint(dir)) throw new DeemError('ERR_IO', `there is no checkpoint in '${dir}'`)
  for (const [name, model] of Object.entries(models)) await model.load(join(dir, `${name}.safetensors`))
  if (optimizer) await optimizer.load(join(dir, 'optimizer.safetensors'))
  return JSON.parse(readFileSync(join(dir, 'state.json'), 'utf8')) as CheckpointState
}
