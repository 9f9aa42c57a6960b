/**
 * onnxruntime as a peer: forward passes in f32, of what torch/export.py writes of the PyTorch versions. The protocol is that of
 * torch/main.py.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { peerRequire, python } from './index.js'

// What this file uses of onnxruntime-node, which is no dependency and may not be installed.
type Data = Float32Array | BigInt64Array | Int32Array | Uint8Array
interface OrtTensor {
  readonly type: string
  readonly data: Data
  readonly dims: readonly number[]
}
interface Session {
  run(feeds: Record<string, OrtTensor>): Promise<Record<string, OrtTensor>>
  release(): Promise<void>
}
interface Library {
  Tensor: new (type: string, data: Data, dims: readonly number[]) => OrtTensor
  InferenceSession: { create(path: string, options: object): Promise<Session> }
}

interface Request {
  do: string
  case?: { pass: string; precision: string; program: string }
  inputs?: string
  path?: string
  threads?: number
  batches?: number
  runs?: number
}

const ort = peerRequire('onnxruntime-node') as Library
const exporter = fileURLToPath(new URL('../../bench/peers/torch/export.py', import.meta.url))
// Emptied at the start, since the bench ends its peers without asking.
const folder = fileURLToPath(new URL('../../bench/peers/.cache/onnx/', import.meta.url))
rmSync(folder, { recursive: true, force: true })
mkdirSync(folder, { recursive: true })
const model = join(folder, 'model.onnx')
let session: Session | undefined
let feeds: Record<string, OrtTensor> = {}
let residentBefore = 0

const kinds = {
  F32: { type: 'float32', array: Float32Array },
  I64: { type: 'int64', array: BigInt64Array },
  I32: { type: 'int32', array: Int32Array },
  U8: { type: 'uint8', array: Uint8Array },
} as const

/** Tensors of a safetensors file. */
function readInputs(path: string): Record<string, OrtTensor> {
  const bytes = readFileSync(path)
  const at = 8 + Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.toString('utf8', 8, at)) as Record<
    string,
    { dtype: keyof typeof kinds; shape: number[]; data_offsets: [number, number] }
  >
  const out: Record<string, OrtTensor> = {}
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const { type, array } = kinds[entry.dtype]
    const [begin, end] = entry.data_offsets
    out[name] = new ort.Tensor(
      type,
      new array(Uint8Array.from(bytes.subarray(at + begin, at + end)).buffer),
      entry.shape,
    )
  }
  return out
}

function writeResults(path: string, tensors: Record<string, OrtTensor>): void {
  const header: Record<string, object> = {}
  let position = 0
  for (const [name, t] of Object.entries(tensors)) {
    const dtype = Object.entries(kinds).find(([, k]) => k.type === t.type)?.[0]
    if (!dtype) throw new Error(`${name} is ${t.type}`)
    header[name] = { dtype, shape: t.dims, data_offsets: [position, position + t.data.byteLength] }
    position += t.data.byteLength
  }
  let text = JSON.stringify(header)
  text += ' '.repeat((8 - (text.length % 8)) % 8)
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  const parts = Object.values(tensors).map((t) => Buffer.from(t.data.buffer, t.data.byteOffset, t.data.byteLength))
  writeFileSync(path, Buffer.concat([length, Buffer.from(text), ...parts]))
}

async function open(threads: number): Promise<void> {
  await session?.release()
  session = await ort.InferenceSession.create(model, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    graphOptimizationLevel: 'all',
  })
}

async function load(r: Request): Promise<object> {
  residentBefore = process.memoryUsage.rss()
  const request = join(folder, 'request.json')
  writeFileSync(request, JSON.stringify(r))
  const { status, stdout, stderr } = spawnSync(python(), [exporter, request, model], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`writing the model failed: ${stderr.slice(-400)}`)
  const reply = JSON.parse(stdout.trim().split('\n').at(-1) as string) as { inputs?: string[]; unsupported?: string }
  if (!reply.inputs) return { error: `no ONNX form: ${reply.unsupported}`, unsupported: true }
  const all = readInputs(r.inputs as string)
  feeds = Object.fromEntries(reply.inputs.map((name) => [name, all[name] as OrtTensor]))
  await open(r.threads as number)
  return {}
}

async function answer(r: Request): Promise<object> {
  switch (r.do) {
    case 'load':
      return load(r)
    case 'results':
      writeResults(r.path as string, await (session as Session).run(feeds))
      return {}
    case 'run': {
      const seconds: number[] = []
      for (let b = 0; b < (r.batches as number); b++) {
        const begin = performance.now()
        for (let i = 0; i < (r.runs as number); i++) await (session as Session).run(feeds)
        seconds.push((performance.now() - begin) / 1000)
      }
      return { seconds }
    }
    case 'threads':
      await open(r.threads as number)
      return {}
    case 'peak':
      writeFileSync('/proc/self/clear_refs', '5')
      await (session as Session).run(feeds)
      return {
        bytes: 1024 * Number(/VmHWM:\s*(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) - residentBefore,
      }
    case 'unload':
      await session?.release()
      session = undefined
      return {}
    default:
      return { error: `no request '${r.do}'` }
  }
}

const { version } = peerRequire('onnxruntime-node/package.json') as { version: string }
console.log(JSON.stringify({ onnxruntime: version }))
for await (const line of createInterface({ input: process.stdin })) {
  let reply: object
  try {
    reply = await answer(JSON.parse(line) as Request)
  } catch (error) {
    reply = { error: error instanceof Error ? error.message : String(error) }
  }
  console.log(JSON.stringify(reply))
}
