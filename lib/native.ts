/**
 * Loads the addon and types all of it. Nothing else imports the `.node` file.
 * Thread binding and waiting are set before the load because libgomp reads them once, when it is mapped.
 */
import { createRequire } from 'node:module'
import { DeemError, type ErrorCode } from './errors.js'
import { packageRoot } from './root.js'

export type DType = 'f32' | 'bf16' | 'f16' | 'i64' | 'i32' | 'u8'
const dtypes: readonly string[] = ['f32', 'bf16', 'f16', 'i64', 'i32', 'u8'] satisfies DType[]
export function isDType(name: string): name is DType {
  return dtypes.includes(name)
}
/** Where tensors and models lie. `cuda` is the GPU in use, `cuda:1` chooses one, `auto` is `cuda` where that works and else `cpu`. */
export type Device = 'cpu' | 'cuda' | `cuda:${number}` | 'auto'
export type TypedArray = Float32Array | Uint16Array | BigInt64Array | Int32Array | Uint8Array

export interface NativeTensor {
  readonly disposed: boolean
  readonly shape: number[]
  readonly dtype: DType
  readonly device: 'cpu' | 'cuda'
  readonly tracked: boolean
  readonly requiresGrad: boolean
  dispose(): void
  setRequiresGrad(on: boolean): void
  read(): TypedArray
  data(): NativeTask<TypedArray>
  item(): number
  grad(): NativeTensor | null
  clearGrad(): void
  detach(): NativeTensor
}

export interface NativeFile {
  tensors: Record<string, NativeTensor>
  metadata: Record<string, string>
}

/** Where a tensor lies in a file: `start` in bytes, strides in elements (none: contiguous). */
export interface PlacedTensor {
  name: string
  dtype: DType
  shape: readonly number[]
  strides: readonly number[]
  start: number
}

/** Elements and shape, free of the engine. */
export interface PlainTensor {
  data: TypedArray
  shape: number[]
}

export interface NativeTask<T> {
  promise: Promise<T>
  abort(): void
  /** Steps done and in all; [0, 0] where the work does not say. */
  progress(): [done: number, total: number]
}

export interface ParameterInfo {
  /** As in published checkpoints. */
  name: string
  /** In the published layout: convolution weights are OIHW. */
  shape: number[]
  dtype: DType
  trainable: boolean
  /** Sits directly in a LayerNorm. */
  norm: boolean
  /** Saved, never trained. */
  buffer: boolean
  /** Of bf16 and f16: whether f32 values stand behind it, see {@link Module.keepMasters}. */
  master: boolean
  /** The weight of a linear layer. */
  linear: boolean
  /** Whether it is kept a second time, see {@link Module.prepack}. */
  prepacked: boolean
  /** Of the codes of a weight in few bits: the weight they stand for, which takes floats when it is assigned. */
  quantized?: { name: string; shape: number[] }
}

export interface LoadReport {
  missing: string[]
  unexpected: string[]
}

export interface NativeModel {
  dispose(): void
  open(kind: string, inputs: Record<string, NativeTensor>, optionsJson: string): NativeTask<NativeModel>
  parameters(): ParameterInfo[]
  aliases(): Record<string, string>
  setTrainable(names: string[], on: boolean): void
  keepMasters(names: string[], on: boolean): void
  prepack(names: string[], on: boolean): NativeTask<number>
  parameter(name: string): NativeTensor
  gradient(name: string): NativeTensor | null
  read(name: string): NativeTensor
  view(name: string, dtype: string): NativeTensor
  assign(name: string, value: NativeTensor): void
  assignAll(names: string[], values: NativeTensor[], leading: boolean): NativeTask<void>
  /** Starting values of a model that was created without. */
  draw(names: string[]): NativeTask<void>
  zeroGrad(): void
  load(path: string, prefix: string, strict: boolean): NativeTask<LoadReport>
  save(path: string, dtype: string): NativeTask<void>
  call(
    method: string,
    inputs: Record<string, NativeTensor>,
    optionsJson: string,
    grad: boolean,
    seed: number,
    step: number,
    asData: false,
  ): NativeTask<Record<string, NativeTensor>>
  call(
    method: string,
    inputs: Record<string, NativeTensor>,
    optionsJson: string,
    grad: boolean,
    seed: number,
    step: number,
    asData: true,
  ): NativeTask<Record<string, PlainTensor>>
}

export interface NativeAdamW {
  dispose(): void
  step(lrFactor: number, gradScale?: number): NativeTask<number>
  zeroGrad(): void
  save(path: string): NativeTask<void>
  load(path: string): NativeTask<void>
}

export interface MemoryReport {
  /** Bytes in live tensors, and in what an operation needs meanwhile. */
  current: number
  /** Highest `current` since the start or the last {@link resetPeakMemory}. */
  peak: number
  /** Bytes taken from the system: live and kept for reuse. */
  reserved: number
  /** 0: none. */
  limit: number
  /** How often memory was taken from the system since the start: a new block, or more for one that is kept. */
  allocations: number
}

/** A processor that models can run on, or what keeps it from that. */
export interface DeviceReport {
  /** `cpu`, `cuda:0`, `cuda:1`; `cuda` where there is none. */
  device: string
  /** E.g. `NVIDIA H100`. */
  name: string
  usable: boolean
  /** What is missing, where it is not usable. */
  why: string
  /** Of GPUs, e.g. `9.0`. */
  capability: string
  totalBytes: number
  /** A GPU that this process does not use says all. */
  freeBytes: number
  /** Of GPUs, by their clocks: bytes a second of memory; 0 where not known. */
  memoryRate: number
  /** Operations a second in f32. */
  f32Rate: number
  /** Operations a second of matrix products of bf16 or f16 with f32 sums. */
  tensorRate: number
}

export interface Native {
  tensor(data: TypedArray, shape: readonly number[], dtype: DType, device?: string): NativeTensor
  ops: Record<string, (...args: unknown[]) => NativeTensor | number>
  setGradEnabled(on: boolean): boolean
  createModel(
    kind: string,
    configJson: string,
    seed: number,
    dtype: DType,
    device: string | undefined,
    draw: boolean,
  ): NativeTask<NativeModel>
  modelKinds(): string[]
  NativeAdamW: new (
    items: { name: string; tensor: NativeTensor; lr: number; weightDecay: number }[],
    options: { beta1?: number; beta2?: number; eps?: number; maxGradNorm?: number; masterWeights?: boolean },
  ) => NativeAdamW
  backward(tensors: NativeTensor[], gradients: NativeTensor[] | null): NativeTask<void>
  trainStep(
    model: NativeModel,
    method: string,
    inputs: Record<string, NativeTensor>,
    optionsJson: string,
    optimizer: NativeAdamW | null,
    step: { lrFactor?: number; lossScale?: number; gradScale?: number; seed?: number; step?: number },
  ): NativeTask<Record<string, number>>
  readTensors(path: string, mapped: boolean): NativeTask<NativeFile>
  mapTensors(path: string, layout: readonly PlacedTensor[]): NativeTask<NativeFile>
  writeTensors(
    path: string,
    tensors: Record<string, NativeTensor>,
    metadata: Record<string, string>,
    dtype: string,
  ): NativeTask<void>
  memory(device?: string): MemoryReport
  resetPeakMemory(device?: string): void
  emptyCache(device?: string): void
  setMemoryLimit(bytes: number, device?: string): void
  devices(): DeviceReport[]
  defaultDevice(): 'cpu' | 'cuda'
  setDefaultDevice(device: string): void
  synchronize(): NativeTask<void>
  threads(): number
  setThreads(n: number): void
  isa(): string
  setErrorFactory(make: (code: ErrorCode, message: string) => Error): void
}

process.env['OMP_PROC_BIND'] ??= 'true'
process.env['OMP_PLACES'] ??= 'cores'
// Threads wait for each other by spinning, this many rounds (some 50 us) before they sleep. libgomp's own 300,000 win nothing on a quiet
// machine and lose a factor of four where others want the cores too: a thread that spins keeps its core from the one it waits for.
if (process.env['OMP_WAIT_POLICY'] === undefined) process.env['GOMP_SPINCOUNT'] ??= '5000'

// Required, not imported: Node would read all of it first for the names it exports.
const load = createRequire(import.meta.url)('node-gyp-build') as { (root: string): unknown; path(root: string): string }
/** The addon in use. */
export const addonPath: string = load.path(packageRoot)
export const native: Native = load(packageRoot) as Native
native.setErrorFactory((code, message) => new DeemError(code, message))
