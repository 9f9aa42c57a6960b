/** The most this machine gives in this run: a matrix product (through `linear`) and a sum of two large arrays. */
import { noGrad, ops, type Tensor, tidy } from 'deem'
import type { Precision, Work } from './case.js'

export interface Peak {
  /** Operations a second of the best square product. */
  flops: number
  /** Bytes a second, two arrays read and one written. */
  bytes: number
}

/** Long enough to meet a moment in which no other process wants the cores. */
const seconds = 0.7

/** Seconds of the fastest run. */
function best(work: () => Tensor): number {
  let least = Number.POSITIVE_INFINITY
  noGrad(work).dispose()
  const end = performance.now() + 1000 * seconds
  while (performance.now() < end) {
    const begin = performance.now()
    noGrad(work).dispose()
    least = Math.min(least, (performance.now() - begin) / 1000)
  }
  return least
}

export function measurePeak(precision: Precision): Peak {
  let flops = 0
  for (const n of [1024, 1536, 2048])
    flops = Math.max(
      flops,
      tidy(() => {
        const x = ops.cast(ops.randn([n, n], 1, 0), precision)
        const weight = ops.cast(ops.randn([n, n], 1, 1), precision)
        return (2 * n ** 3) / best(() => ops.linear(x, weight, null, 'none'))
      }),
    )
  const elements = 1 << 25
  const bytes = tidy(() => {
    const a = ops.full([elements], 1, 'f32')
    const b = ops.full([elements], 2, 'f32')
    return (12 * elements) / best(() => ops.add(a, b))
  })
  return { flops, bytes }
}

/** The least seconds that work can take at these peaks, and which of them sets it. */
export function floor(work: Work, peak: Peak): { seconds: number; bound: 'flops' | 'bytes' } {
  const compute = work.flops / peak.flops
  const memory = work.bytes / peak.bytes
  return compute >= memory ? { seconds: compute, bound: 'flops' } : { seconds: memory, bound: 'bytes' }
}
