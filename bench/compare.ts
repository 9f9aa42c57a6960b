/** Whether a peer computed the same: the L2 norm of the difference over that of the peer's result. */
import { readTensors, type Tensor } from 'deem'
import type { Case, Precision } from './case.js'

export interface Comparison {
  name: string
  error: number
  limit: number
}

/**
 * Most of what two right implementations may differ by. In f32 that is rounding in sums of thousands; in bf16 each rounds intermediate
 * results on its own, gradients after more of them, and models of dozens of layers gather the most.
 */
const limits: Record<Case['group'], Record<Precision, { result: number; gradient: number }>> = {
  op: { f32: { result: 2e-6, gradient: 1e-5 }, bf16: { result: 6e-3, gradient: 1.5e-2 } },
  part: { f32: { result: 1e-4, gradient: 1e-3 }, bf16: { result: 5e-2, gradient: 1e-1 } },
  whole: { f32: { result: 1e-3, gradient: 1e-3 }, bf16: { result: 5e-2, gradient: 1e-1 } },
}

/** Gradients smaller than this beside all of them together are compared with it in place of themselves. */
const noiseFloor: Record<Precision, number> = { f32: 1e-4, bf16: 1e-2 }

/** Mean and deviation of four million standard normal draws stay this close, but for one time in some thousands. */
const momentLimit = 3e-3

const l2 = (x: Float32Array) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0))
/** Of what is finite. */
const length = (x: Float32Array) => Math.sqrt(x.reduce((sum, v) => (Number.isFinite(v) ? sum + v * v : sum), 0))

function moments(x: Float32Array): number[] {
  const mean = x.reduce((sum, v) => sum + v, 0) / x.length
  return [mean, Math.sqrt(x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length)]
}

/** Compares our results with those in a file, and names what is missing on either side. */
export async function compare(
  c: Case,
  precision: Precision,
  ours: Readonly<Record<string, Tensor>>,
  path: string,
): Promise<Comparison[]> {
  const { tensors: theirs } = await readTensors(path)
  const names = new Set([...Object.keys(ours), ...Object.keys(theirs)])
  const { result, gradient: usual } = limits[c.group][precision]
  const gradient = precision === 'f32' ? (c.gradientLimit ?? usual) : usual
  // Some gradients (biases of keys) are zero in exact arithmetic and rounding noise here.
  const gradients = Object.entries(theirs).filter(([name]) => name.startsWith('grad.'))
  const all = Math.hypot(...gradients.map(([, t]) => length(t.toFloat32())))
  const out: Comparison[] = []
  for (const name of names) {
    const limit = c.random ? momentLimit : name.startsWith('grad.') ? gradient : result
    const [a, b] = [ours[name], theirs[name]]
    let error = Number.POSITIVE_INFINITY
    if (a && b && a.size === b.size) {
      const [x, y] = [a.toFloat32(), b.toFloat32()]
      if (c.random) {
        const [p, q] = [moments(x), moments(y)] as [number[], number[]]
        error = Math.max(...p.map((v, i) => Math.abs(v - (q[i] as number))))
      } else {
        const difference = l2(x.map((v, i) => (v === y[i] ? 0 : v - (y[i] as number)))) // also where both are infinite
        const size = Math.max(length(y), name.startsWith('grad.') ? noiseFloor[precision] * all : 0)
        error = difference === 0 ? 0 : difference / size
      }
    }
    out.push({ name, error, limit })
  }
  for (const t of Object.values(theirs)) t.dispose()
  return out
}

/** Results as plain numbers, which outlive the tensors. */
export type Numbers = Record<string, Float32Array>
export const numbersOf = (tensors: Readonly<Record<string, Tensor>>): Numbers =>
  Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, t.toFloat32()]))

/**
 * Those of `wrong` that ours really has: in bf16 two right implementations may be far apart where small changes grow (gradients of positions
 * between pixels, say). There, ours may be as far from the results in f32 as twice the peer's are, as in `npm run bench:precision`.
 */
export async function beyondRounding(
  wrong: readonly Comparison[],
  ours: Numbers,
  path: string,
  f32: Numbers,
): Promise<Comparison[]> {
  const { tensors } = await readTensors(path)
  const theirs = numbersOf(tensors)
  for (const t of Object.values(tensors)) t.dispose()
  const distance = (a: Float32Array, b: Float32Array) => l2(a.map((v, i) => v - (b[i] as number)))
  return wrong.filter(({ name }) => {
    const [a, b, exact] = [ours[name], theirs[name], f32[name]]
    if (!a || !b || !exact || a.length !== b.length || a.length !== exact.length) return true
    return !(distance(a, exact) <= 2 * Math.max(distance(b, exact), l2(exact) * 2 ** -9))
  })
}
