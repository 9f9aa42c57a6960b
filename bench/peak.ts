/** The most this machine gives in this run: a matrix product (through `linear`) and a sum of two large arrays. */
import { noGrad, ops, type Tensor, tidy } from 'deem'
import type { Precision, Work } from './case.js'

export interface Peak {
  /** Operations a second of the best square product. */
  flops: number
  /** Bytes a second, two arrays read and one written. */
  bytes: number
}

/** Work that reaches a peak, for as long as its arrays are held. */
export interface PeakWork extends Disposable {
  /** Operations, or bytes, of one run. */
  amount: number
  run(): void
}

/** A square product of n x n. */
export function peakProduct(precision: Precision, n = 2048): PeakWork {
  const [x, weight] = tidy(() => [0, 1].map((stream) => ops.cast(ops.randn([n, n], 1, stream), precision))) as [
    Tensor,
    Tensor,
  ]
  return peakWork([x, weight], 2 * n ** 3, () => ops.linear(x, weight, null, 'none'))
}

/** The sum of two arrays. */
export function peakSum(): PeakWork {
  const elements = 1 << 25
  const [a, b] = [ops.full([elements], 1, 'f32'), ops.full([elements], 2, 'f32')]
  return peakWork([a, b], 12 * elements, () => ops.add(a, b))
}

function peakWork(held: readonly Tensor[], amount: number, result: () => Tensor): PeakWork {
  return {
    amount,
    run: () => noGrad(result).dispose(),
    [Symbol.dispose]() {
      for (const t of held) t.dispose()
    },
  }
}

/** Long enough to meet a moment in which no other process wants the cores. */
const seconds = 0.7

/** Operations or bytes a second of the fastest run. */
function best(make: () => PeakWork): number {
  using work = make()
  let least = Number.POSITIVE_INFINITY
  work.run()
  const end = performance.now() + 1000 * seconds
  while (performance.now() < end) {
    const begin = performance.now()
    work.run()
    least = Math.min(least, (performance.now() - begin) / 1000)
  }
  return work.amount / least
}

export function measurePeak(precision: Precision): Peak {
  return {
    flops: Math.max(...[1024, 1536, 2048].map((n) => best(() => peakProduct(precision, n)))),
    bytes: best(peakSum),
  }
}

/** The least seconds that work can take at these peaks, and which of them sets it. */
export function floor(work: Work, peak: Peak): { seconds: number; bound: 'flops' | 'bytes' } {
  const compute = work.flops / peak.flops
  const memory = work.bytes / peak.bytes
  return compute >= memory ? { seconds: compute, bound: 'flops' } : { seconds: memory, bound: 'bytes' }
}
