/** Comparisons of engine results with stored ones; the limits are those of the fixtures' README. */
import type { Tensor } from '../tensor.js'

export type Rule =
  | 'op' // elementary operations, outputs
  | 'long-sum' // the same, sums over long axes
  | 'op-gradient'
  | 'module' // outputs of modules and the whole model
  | 'module-gradient' // per tensor, L2
  | 'loss'
  | 'trajectory-loss'
  | 'trajectory-norm' // gradient norms before clipping
  | 'parameter-norm'
  | 'sampled' // latents along a sampler's way
  | 'picture' // pixels in 0..1
  | 'exact'

export interface Comparison {
  name: string
  gradient: boolean
  maxAbs: number
  /** Largest difference over the largest reference value; for gradients of modules the relative L2 norm. */
  maxRel: number
  /** L2 norm of the difference over that of the reference; 0 where that is at most 1e-6: nothing but rounding. */
  error: number
  ok: boolean
  /** It agrees with the float64 value, not with the stored one. */
  float64?: true
  /** What was allowed, for the message of a failure. */
  allowed: string
}

/** Absolute limits, times max(1, largest reference value), by dtype of the computation. */
const absolute = {
  f32: { op: 2e-6, 'long-sum': 1e-5, 'op-gradient': 1e-5, module: 3e-5 },
  // Storage in bf16 rounds every intermediate to 8 bits of mantissa.
  bf16: { op: 1.6e-2, 'long-sum': 2e-2, 'op-gradient': 4e-2, module: 8e-2 },
  // f16 to 11 bits: an eighth of bf16's.
  f16: { op: 2e-3, 'long-sum': 2.5e-3, 'op-gradient': 5e-3, module: 1e-2 },
}
const gradientL2 = { f32: 5e-4, bf16: 0.15, f16: 0.02 }
const relative = {
  f32: { loss: 1e-5, 'trajectory-loss': 1e-4, 'trajectory-norm': 1e-3 },
  bf16: { loss: 2e-2, 'trajectory-loss': 2e-2, 'trajectory-norm': 0.1 },
  f16: { loss: 2.5e-3, 'trajectory-loss': 2.5e-3, 'trajectory-norm': 1.5e-2 },
}

export type ComputeType = keyof typeof absolute

export function compare(
  name: string,
  got: Tensor | Float32Array,
  want: Tensor,
  rule: Rule,
  dtype: ComputeType,
): Comparison {
  const a = got instanceof Float32Array ? got : got.toFloat32()
  const b = want.toFloat32()
  const gradient = rule.endsWith('gradient')
  const shapeDiffers = !(got instanceof Float32Array) && `${got.shape}` !== `${want.shape}`
  if (a.length !== b.length || shapeDiffers) {
    const shapes = got instanceof Float32Array ? `${a.length} values` : `[${got.shape}]`
    return {
      name,
      gradient,
      maxAbs: Number.NaN,
      maxRel: Number.NaN,
      error: Number.NaN,
      ok: false,
      allowed: `shape ${shapes}, expected [${want.shape}]`,
    }
  }
  let maxAbs = 0
  let scale = 0
  let difference = 0
  let length = 0
  for (let i = 0; i < b.length; i++) {
    const x = a[i] as number
    const y = b[i] as number
    // -inf stands on both sides where a probability is zero.
    const d = x === y ? 0 : Math.abs(x - y)
    if (!(d <= maxAbs)) maxAbs = Number.isNaN(d) ? Number.NaN : d
    if (Number.isNaN(maxAbs)) break
    scale = Math.max(scale, Math.abs(y))
    difference += d * d
    length += y * y
  }
  const plainRel = scale > 0 ? maxAbs / scale : maxAbs
  const error = Math.sqrt(length) > 1e-6 ? Math.sqrt(difference / length) : 0
  const result = (maxRel: number, ok: boolean, allowed: string): Comparison => ({
    name,
    gradient,
    maxAbs,
    maxRel,
    error: Number.isNaN(maxAbs) ? Number.NaN : error,
    ok,
    allowed,
  })
  switch (rule) {
    case 'exact':
      return result(plainRel, maxAbs === 0, 'equality')
    case 'module-gradient': {
      const limit = gradientL2[dtype] * Math.sqrt(length) + 1e-6
      const l2 = Math.sqrt(difference)
      // The floor of 1e-6 is what makes gradients that are zero in exact arithmetic pass; they have no relative error.
      return result(error, l2 <= limit, `L2 ${limit.toExponential(1)}, is ${l2.toExponential(2)}`)
    }
    case 'parameter-norm': {
      // Stored as f32, whose steps are wider than 1e-5 from 128 on: there, neighbouring numbers are equal.
      const limit = dtype === 'f32' ? 1e-5 : 1e-1
      const near = b.every((y, i) => Math.abs((a[i] as number) - y) <= Math.max(limit, Math.abs(y) * 2 ** -23))
      return result(plainRel, near, `abs ${limit}`)
    }
    case 'loss':
    case 'trajectory-loss':
    case 'trajectory-norm': {
      const limit = relative[dtype][rule]
      return result(plainRel, plainRel <= limit, `rel ${limit}`)
    }
    case 'sampled':
      return result(plainRel, maxAbs <= 1e-3, 'abs 1e-3')
    case 'picture':
      return result(plainRel, maxAbs <= 1e-4, 'abs 1e-4')
    default: {
      const limit = absolute[dtype][rule] * Math.max(1, scale)
      return result(plainRel, maxAbs <= limit, `abs ${limit.toExponential(1)}`)
    }
  }
}
