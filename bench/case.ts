/** What a case is: plain data, so that every side builds the same work from it and tests can share the sizes. */
import type { DType } from 'deem'

export type Json = number | string | boolean | null | readonly Json[] | { readonly [key: string]: Json }
export type Settings = Readonly<Record<string, Json>>

/** A drawn input. Floating ones take the dtype of the run unless one is given. */
export interface Spec {
  shape: readonly number[]
  /** `normal` times `scale`, `uniform` in 0..1, whole numbers in 0..below-1, or 1 everywhere. Default normal. */
  fill?: 'normal' | 'uniform' | 'ones' | { below: number }
  scale?: number
  dtype?: DType
  /** Elements that a pass reads, where that is less than all. */
  touched?: number
  /** Whether backward gives its gradient. Default: it does for floating inputs. */
  grad?: boolean
}

/** Least work of one pass: operations that any implementation does, bytes that it must move at least once. */
export interface Work {
  flops: number
  bytes: number
}

export type Precision = 'f32' | 'bf16'
export type Pass = 'forward' | 'backward'

export interface Case {
  /** What filters match, e.g. `linear/512x4096x4096/forward`. */
  name: string
  group: 'op' | 'part' | 'whole'
  /** Which program of each side runs it. */
  program: string
  settings: Settings
  inputs: Readonly<Record<string, Spec>>
  /** `backward`: forward, then gradients of everything that wants one. */
  pass: Pass
  precisions: readonly Precision[]
  work: (bytesPerElement: number) => Work
  /** Results are draws: only their mean and deviation can agree. */
  random?: boolean
  /** Dtypes in which results are not compared, since rounding alone decides them. */
  unchecked?: readonly Precision[]
  /** What gradients in f32 may differ by (L2), where rounding decides more of them than elsewhere. */
  gradientLimit?: number
  /** Which peers may run it; default: PyTorch, and onnxruntime for forward passes in f32. */
  peers?: readonly PeerName[]
}

export const peerNames = ['torch', 'torch-compile', 'onnxruntime', 'llama.cpp'] as const
export type PeerName = (typeof peerNames)[number]

export const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1)

const floating = (s: Spec) => s.dtype === undefined || ['f32', 'bf16', 'f16'].includes(s.dtype)
export const wantsGradient = (s: Spec): boolean => s.grad ?? floating(s)

function bytesOf(s: Spec, perElement: number, elements = size(s.shape)): number {
  const own = { f32: 4, bf16: 2, f16: 2, i64: 8, i32: 4, u8: 1 }
  return elements * (s.dtype ? own[s.dtype] : perElement)
}

export interface OpCase {
  /** Name without the pass. */
  name: string
  program: string
  settings?: Settings
  inputs: Record<string, Spec>
  /** Shape of the result. */
  output: readonly number[]
  /** Bytes of an element of the result where they are not those of the run's dtype. */
  outputBytes?: number
  /** Operations of the forward pass; absent: too few to count beside the bytes. */
  flops?: number
  /** Operations of the backward pass over those of the forward pass. Default 2. */
  backwardFlops?: number
  passes?: readonly Pass[]
  precisions?: readonly Precision[]
  random?: boolean
  unchecked?: readonly Precision[]
  gradientLimit?: number
}

/** Forward and backward cases of an operation. Backward reads inputs and the result's gradient once more, and writes gradients. */
export function opCases(op: OpCase): Case[] {
  const { flops = 0, backwardFlops = 2, passes = ['forward', 'backward'] } = op
  const specs = Object.values(op.inputs)
  return passes.map((pass) => ({
    name: `${op.name}/${pass}`,
    group: 'op',
    program: op.program,
    settings: op.settings ?? {},
    inputs: op.inputs,
    pass,
    precisions: op.precisions ?? ['f32', 'bf16'],
    work: (perElement) => {
      const read = specs.reduce((sum, s) => sum + bytesOf(s, perElement, s.touched), 0)
      const written = size(op.output) * (op.outputBytes ?? perElement)
      const gradients = specs.reduce((sum, s) => sum + (wantsGradient(s) ? bytesOf(s, perElement) : 0), 0)
      return pass === 'forward'
        ? { flops, bytes: read + written }
        : { flops: flops * (1 + backwardFlops), bytes: 2 * (read + written) + gradients }
    },
    ...(op.random && { random: true }),
    ...(op.unchecked && { unchecked: op.unchecked }),
    ...(op.gradientLimit && { gradientLimit: op.gradientLimit }),
  }))
}
