// Copies of the stored weight folders, to be changed and damaged.
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { DeemError, mapTensors, Scope, type Tensor, writeTensors } from 'deem'

export const layouts = fileURLToPath(new URL('../../test/fixtures/hf_layout/', import.meta.url))
export const layout = (name: string) => join(layouts, name)

export type Json = Record<string, unknown>
export const json = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as Json
/** Configuration of the whole model. */
export const wholeConfig = () => json(join(layouts, 'deem/config.json'))

const root = mkdtempSync(join(tmpdir(), 'deem-layout-'))
let made = 0
export const emptyFolder = () => join(root, String(made++))
export const removeCopies = () => rmSync(root, { recursive: true, force: true })

export function copyOf(name: string): string {
  const to = emptyFolder()
  cpSync(layout(name), to, { recursive: true })
  return to
}

export function editJson(path: string, change: (all: Json) => Json | undefined): void {
  const all = json(path)
  writeFileSync(path, JSON.stringify(change(all) ?? all))
}

/** Weights of a folder, whole or in shards, as one safetensors file after a change. */
export async function editWeights(folder: string, stem: string, change: (all: Record<string, Tensor>) => unknown) {
  const files = readdirSync(folder).filter((name) => /\.(?:safetensors|bin)(?:\.index\.json)?$/.test(name))
  using scope = new Scope()
  const all: Record<string, Tensor> = {}
  for (const name of files)
    if (!name.endsWith('.json')) Object.assign(all, scope.keep((await mapTensors(join(folder, name))).tensors))
  change(all)
  await writeTensors(join(folder, 'fresh'), all)
  for (const name of files) rmSync(join(folder, name))
  cpSync(join(folder, 'fresh'), join(folder, `${stem}.safetensors`))
  rmSync(join(folder, 'fresh'))
}

/** What a promise rejects with: a code and a message, or that it did not. */
export async function failure(running: Promise<unknown>): Promise<{ code: string; message: string }> {
  const error = await running.then(
    () => new Error('it succeeded'),
    (e: unknown) => e,
  )
  return DeemError.isInstance(error)
    ? { code: error.code, message: error.message }
    : { code: 'none', message: String((error as Error).stack ?? error) }
}
