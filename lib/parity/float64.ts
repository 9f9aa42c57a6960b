/**
 * Numbers that the stored float32 run misses by over half of what parity allows, in float64: `float64.json` in a folder above the cases
 * (`npm run bench:precision -- --float64` writes it), of computations in f32 alone. Beside them a result without any rounding could fail, so it may agree with either,
 * within the same limit.
 *
 * There are two, gradient norms of the training run: a group norm over two numbers whose variance lies below its epsilon multiplies the
 * rounding before it by 309.
 */
import { type Tensor, tensor } from '../tensor.js'
import { besideCases } from './case.js'
import type { Comparison } from './compare.js'

/** Of scalars, by the names they are stored under. */
export const float64Values = (dir: string, kind: string): Record<string, number> =>
  besideCases(dir, 'float64.json', kind) ?? {}

/** `comparison` with what is stored, or, where that fails and `value` is given, `again` with that. */
export function orFloat64(
  comparison: Comparison,
  value: number | undefined,
  again: (want: Tensor) => Comparison,
): Comparison {
  if (comparison.ok || value === undefined) return comparison
  const second = again(tensor([value], [1]))
  return second.ok ? { ...second, float64: true } : comparison
}
