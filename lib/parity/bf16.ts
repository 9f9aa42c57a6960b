/**
 * What a case may be off in bf16: twice what PyTorch's bf16 is. `bf16.json`, in a folder above the cases, holds PyTorch's relative L2 errors
 * (`npm run bench:precision -- --store` measures them): of each output the largest of several draws of the roundings, of a case's gradients
 * the root mean square and the largest. Gradients are judged by both: single ones of deep models vary by factors from draw to draw.
 */
import { besideCases } from './case.js'
import type { Comparison } from './compare.js'

export interface Bf16Errors {
  outputs: Record<string, number>
  gradients?: { rms: number; worst: number }
}
export interface Bf16File {
  /** Version of PyTorch. */
  torch: string
  /** Of the roundings. */
  draws: number
  cases: Record<string, Bf16Errors>
}

const factor = 2
/** Half a unit in the last place: what rounding alone may cost. Losses hit the truth by luck. */
const least = 2 ** -9

const rms = (values: readonly number[]): number =>
  Math.sqrt(values.reduce((a, v) => a + v * v, 0) / Math.max(1, values.length))

/** PyTorch's errors for a case; nothing where nobody measured them. */
export const bf16Errors = (dir: string, kind: string): Bf16Errors | undefined => besideCases(dir, 'bf16.json', kind)

/**
 * Of an output: an error from which on PyTorch has no digit right either. The norm of the gradients some steps after a rounding is such a
 * one: any finite value will do.
 */
const lost = 0.5

/** PyTorch's error of an output. Variants of a step are judged like the step; norms of gradients are no further off than gradients. */
function ofOutput({ outputs, gradients }: Bf16Errors, name: string): number | undefined {
  const error = outputs[name] ?? outputs[name.replace(/^\w+\./, '')]
  return error ?? (name.endsWith('grad_norms') ? gradients?.rms : undefined)
}

/** The same comparisons under these limits. What PyTorch's errors do not name stays as it was judged. */
export function judge(list: readonly Comparison[], errors: Bf16Errors): Comparison[] {
  const { gradients } = errors
  const within = (c: Comparison, error: number): Comparison => {
    const limit = c.gradient || error < lost ? factor * Math.max(error, least) : Number.MAX_VALUE
    const allowed = `L2 ${limit.toExponential(1)} of it, is ${c.error.toExponential(1)}: twice PyTorch's in bf16`
    return { ...c, ok: c.error <= limit, allowed }
  }
  const judged = list.map((c) => {
    const error = c.gradient ? gradients?.worst : ofOutput(errors, c.name)
    // Without an error of its own: zero in exact arithmetic, and held to that.
    return error === undefined || Number.isNaN(c.error) || (c.error === 0 && !c.ok) ? c : within(c, error)
  })
  const of = list.filter((c) => c.gradient && c.error > 0)
  if (!gradients || of.length === 0) return judged
  const all = { name: 'all gradients', gradient: true, maxAbs: 0, maxRel: 0, error: rms(of.map((c) => c.error)) }
  return [...judged, within({ ...all, ok: false, allowed: '' }, gradients.rms)]
}
