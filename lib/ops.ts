/**
 * The operations, for research scripts and tests. Each runs on the engine thread and is waited for; formulas and shapes are
 * in `csrc/ops.h`. Results carry a graph when an input wants a gradient, unless inside {@link noGrad}.
 */
import { type Device, type DType, type NativeTensor, native } from './native.js'
import { Tensor } from './tensor.js'

export type Activation = 'none' | 'relu' | 'gelu' | 'gelu_tanh' | 'silu' | 'quick_gelu'

export interface Conv2dOptions {
  stride?: number
  padLeft?: number
  padRight?: number
  padTop?: number
  padBottom?: number
  /** 1, or the number of channels (depthwise). */
  groups?: number
}

export interface AttentionOptions {
  /** Defaults to 1 / sqrt(head size). */
  scale?: number
  /** The last Tq of the Tk keys are the queries' own. */
  causal?: boolean
}

export interface MmfsOptions {
  heads: number
  points: number
  /** `[height, width]` of each level of one image. */
  levelShapes: [number, number][]
  /** Multiplies the offsets of each level. */
  scaleRatios: number[]
}

export type Unary = (x: Tensor) => Tensor
export type Binary = (a: Tensor, b: Tensor) => Tensor

/** All operations by name. */
export interface Ops {
  add: Binary
  sub: Binary
  mul: Binary
  div: Binary
  addScalar(x: Tensor, s: number): Tensor
  mulScalar(x: Tensor, s: number): Tensor
  neg: Unary
  exp: Unary
  log: Unary
  sqrt: Unary
  square: Unary
  abs: Unary
  tanh: Unary
  sigmoid: Unary
  relu: Unary
  silu: Unary
  gelu: Unary
  geluTanh: Unary
  quickGelu: Unary
  clamp(x: Tensor, low: number, high: number): Tensor
  where(mask: Tensor, a: Tensor, b: Tensor): Tensor
  /** x > limit as u8. */
  greater(x: Tensor, limit: number): Tensor
  cast(x: Tensor, dtype: DType): Tensor
  geglu: Unary
  swiglu: Unary
  sum(x: Tensor, axes: number[], keepDims: boolean): Tensor
  mean(x: Tensor, axes: number[], keepDims: boolean): Tensor
  sumTo(x: Tensor, shape: number[]): Tensor
  mseLoss: Binary
  argmax: Unary
  norm(x: Tensor): number
  matmul(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean): Tensor
  linear(x: Tensor, weight: Tensor, bias: Tensor | null, activation: Activation): Tensor
  /**
   * `residual + linear(x, weight, bias) * scale`: residual `[..., out]`, scale `[out]` or null for 1 (ConvNeXt's layer scale). The bits of these
   * operations one after the other; where no gradient is wanted, bf16 may take one pass for all.
   */
  addLinear(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | null, scale: Tensor | null): Tensor
  /**
   * `[out, in]` in 8 or 4 bits a number, in groups of 32, 64 or 128 numbers of a row that share an f16 scale (and an f16 offset unless
   * symmetric): u8 `[out, row bytes]`. Rounds to nearest. Throws ERR_VALUE for numbers that are not finite.
   */
  quantize(weight: Tensor, bits: number, group: number, symmetric: boolean): Tensor
  /** The numbers of a quantised weight of `cols` columns, f32 `[out, cols]`. */
  dequantize(packed: Tensor, cols: number, bits: number, group: number, symmetric: boolean): Tensor
  /** `linear` with a quantised weight; x in any floating dtype. Gradients of x and bias. */
  quantizedLinear(
    x: Tensor,
    packed: Tensor,
    bits: number,
    group: number,
    symmetric: boolean,
    bias: Tensor | null,
  ): Tensor
  conv2d(x: Tensor, weight: Tensor, bias: Tensor | null, options: Conv2dOptions): Tensor
  layerNorm(x: Tensor, weight: Tensor, bias: Tensor, eps: number): Tensor
  rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor
  groupNorm(x: Tensor, weight: Tensor, bias: Tensor, groups: number, eps: number, silu: boolean): Tensor
  attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | null, options: AttentionOptions): Tensor
  rope(x: Tensor, positions: Tensor, base: number): Tensor
  softmax: Unary
  logSoftmax: Unary
  crossEntropy(logits: Tensor, labels: Tensor, ignoreIndex: number): Tensor
  embedding(table: Tensor, ids: Tensor): Tensor
  embedInterleaved(
    ids: Tensor,
    table: Tensor,
    imageEmbeds: Tensor,
    soiVector: Tensor,
    imageToken: number,
    soiToken: number,
  ): Tensor
  msDeformAttn(value: Tensor, levelShapes: [number, number][], locations: Tensor, weights: Tensor): Tensor
  mmfsAttention(
    value: Tensor,
    offsets: Tensor,
    offsetTable: Tensor,
    logits: Tensor,
    logitTable: Tensor,
    relative: Tensor,
    reference: Tensor,
    ignoreToken: Tensor,
    options: MmfsOptions,
  ): Tensor
  resampleTable(table: Tensor, target: number): Tensor
  resampleGrid(table: Tensor, height: number, width: number): Tensor
  resizeBilinear(x: Tensor, height: number, width: number): Tensor
  resizeNearest(x: Tensor, height: number, width: number): Tensor
  timestepEmbedding(t: Tensor, dim: number): Tensor
  sincos1d(dim: number, count: number): Tensor
  sincos2d(dim: number, side: number, withCls: boolean): Tensor
  reshape(x: Tensor, shape: number[]): Tensor
  permute(x: Tensor, axes: number[]): Tensor
  slice(x: Tensor, axis: number, begin: number, end: number): Tensor
  broadcastTo(x: Tensor, shape: number[]): Tensor
  cat(parts: Tensor[], axis: number): Tensor
  stack(parts: Tensor[], axis: number): Tensor
  padRows(x: Tensor, rows: number): Tensor
  gatherRows(x: Tensor, index: Tensor): Tensor
  contiguous: Unary
  /** The same as {@link Tensor.to}. */
  toDevice(x: Tensor, device: Device): Tensor
  /** Draws are the same on every device; of normals the last bits may differ. Devices default to `defaultDevice()`. */
  randn(shape: number[], seed: number, stream: number, device?: Device): Tensor
  rand(shape: number[], seed: number, stream: number, device?: Device): Tensor
  randint(shape: number[], low: number, high: number, seed: number, stream: number): Tensor
  dropout(x: Tensor, p: number, seed: number, stream: number): Tensor
  dropPath(x: Tensor, p: number, seed: number, stream: number): Tensor
  full(shape: number[], value: number, dtype: DType, device?: Device): Tensor
}

function unwrap(value: unknown): unknown {
  if (value instanceof Tensor) return value.handle
  return Array.isArray(value) && value[0] instanceof Tensor ? value.map(unwrap) : value
}

function wrap(f: (...args: unknown[]) => NativeTensor | number): (...args: unknown[]) => Tensor | number {
  return (...args) => {
    const result = f(...args.map(unwrap))
    return typeof result === 'number' ? result : new Tensor(result)
  }
}

export const ops: Ops = Object.fromEntries(
  Object.entries(native.ops).map(([name, f]) => [name, wrap(f)]),
) as unknown as Ops

/** Runs `fn` without recording graphs. Synchronous only. */
export function noGrad<T>(fn: () => T): T {
  const before = native.setGradEnabled(false)
  try {
    return fn()
  } finally {
    native.setGradEnabled(before)
  }
}
