/**
 * llama.cpp as a peer, through node-llama-cpp: decoding alone. The protocol is that of torch/main.py; its weights are random ones of the
 * same shape, so there are no results to compare.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { peerRequire, python } from './index.js'

// What this file uses of node-llama-cpp, which is no dependency and may not be installed.
interface Sequence {
  readonly nextTokenIndex: number
  evaluateWithoutGeneratingNewTokens(tokens: number[]): Promise<void>
  evaluate(tokens: number[], options: { temperature: number; yieldEogToken: boolean }): AsyncGenerator<number>
  eraseContextTokenRanges(ranges: { start: number; end: number }[]): Promise<void>
}
interface Disposing {
  dispose(): Promise<void>
}
interface Context extends Disposing {
  getSequence(): Sequence
}
interface Model extends Disposing {
  createContext(options: object): Promise<Context>
}
interface Library {
  getLlama(options: object): Promise<{ loadModel(options: object): Promise<Model> }>
}

interface LlamaCase {
  program: string
  precision: string
  settings: { config: object; prompt: number; tokens: number; quantization?: { bits: number } }
}
type Request = { do: string; case?: LlamaCase; threads?: number; batches?: number; runs?: number }

const { getLlama } = (await import(peerRequire.resolve('node-llama-cpp'))) as Library
const llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, logLevel: 'error' })
const folder = fileURLToPath(new URL('../../bench/peers/.cache/', import.meta.url))
const writer = fileURLToPath(new URL('../../bench/peers/llama_gguf.py', import.meta.url))

/** The file of a shape and kind, written once. */
function weights(config: object, kind: string): string {
  const shape = Object.values(config).join('-')
  const path = `${folder}llama-${shape}-${kind}.gguf`
  if (existsSync(path)) return path
  mkdirSync(folder, { recursive: true })
  const { status, stderr } = spawnSync(python(), [writer, JSON.stringify(config), kind, `${path}.new`], {
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`writing ${kind} weights failed: ${stderr.slice(-400)}`)
  renameSync(`${path}.new`, path)
  return path
}

let model: Model | undefined
let context: Context | undefined
let sequence: Sequence | undefined
let of: LlamaCase | undefined

async function unload(): Promise<void> {
  await context?.dispose()
  await model?.dispose()
  model = context = sequence = of = undefined
}

async function openContext(threads: number): Promise<void> {
  const { settings } = of as LlamaCase
  await context?.dispose()
  context = await (model as Model).createContext({ contextSize: 256, threads: { ideal: threads, min: threads } })
  sequence = context.getSequence()
  await sequence.evaluateWithoutGeneratingNewTokens(Array.from({ length: settings.prompt }, (_, i) => 5 + i))
}

/** Every token of a pass costs one whole step, as on our side. */
async function pass(): Promise<void> {
  const { settings } = of as LlamaCase
  const s = sequence as Sequence
  let left = settings.tokens
  for await (const _ of s.evaluate([9], { temperature: 0, yieldEogToken: true })) if (--left === 0) break
  await s.eraseContextTokenRanges([{ start: settings.prompt, end: s.nextTokenIndex }])
}

async function answer(r: Request): Promise<object> {
  switch (r.do) {
    case 'load': {
      const c = r.case as LlamaCase
      const bits = c.settings.quantization?.bits
      if (c.program !== 'decode' || (c.precision !== 'bf16' && !bits))
        return {
          error: `llama.cpp decodes in bf16, Q8_0 and Q4_0, not ${c.program} in ${c.precision}`,
          unsupported: true,
        }
      await unload()
      of = c
      const kind = bits === 8 ? 'q8_0' : bits === 4 ? 'q4_0' : 'bf16'
      model = await llama.loadModel({ modelPath: weights(c.settings.config, kind), gpuLayers: 0 })
      await openContext(r.threads as number)
      return {}
    }
    case 'results':
      return { unchecked: true }
    case 'run': {
      const seconds: number[] = []
      for (let b = 0; b < (r.batches as number); b++) {
        const begin = performance.now()
        for (let i = 0; i < (r.runs as number); i++) await pass()
        seconds.push((performance.now() - begin) / 1000)
      }
      return { seconds }
    }
    case 'threads':
      await openContext(r.threads as number)
      return {}
    case 'peak':
      return {}
    case 'unload':
      await unload()
      return {}
    default:
      return { error: `no request '${r.do}'` }
  }
}

const version = JSON.parse(
  readFileSync(
    fileURLToPath(new URL('../../bench/peers/node_modules/node-llama-cpp/package.json', import.meta.url)),
    'utf8',
  ),
).version as string
console.log(JSON.stringify({ 'node-llama-cpp': version }))
for await (const line of createInterface({ input: process.stdin })) {
  let reply: object
  try {
    reply = await answer(JSON.parse(line) as Request)
  } catch (error) {
    reply = { error: error instanceof Error ? error.message : String(error) }
  }
  console.log(JSON.stringify(reply))
}
