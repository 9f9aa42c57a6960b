// One case of an operation drives every check: the value against a float64 reference, the gradient against float64 finite
// differences of that reference, and both again with inputs that are strided views and, where asked, of 16 bits.
import test from 'ava'
import { backward, DeemError, type DType, type ErrorCode, ops, type Tensor, tensor } from 'deem'
import { generator } from './random.js'

export { generator } from './random.js'

/** Numbers of a reference computation. */
export interface F64 {
  data: Float64Array
  shape: number[]
}

export interface InputSpec {
  shape: number[]
  /** Values; default is standard normal, seeded by the case. Use another to stay away from kinks. */
  values?: (i: number, normal: () => number) => number
  dtype?: DType
  /** Whether a gradient is checked; default: floating inputs. */
  grad?: boolean
}

export interface OpCase {
  name: string
  inputs: Record<string, InputSpec>
  run: (t: Record<string, Tensor>) => Tensor
  /** The same in float64. */
  reference: (x: Record<string, F64>) => ArrayLike<number>
  /** Absolute, times max(1, largest reference value). Defaults: value 2e-6, gradient 1e-5 (fixtures/README.md). */
  tolerance?: { value?: number; grad?: number }
  /** Elements of each input whose derivative is checked; default 40. */
  probes?: number
  /** Narrow dtypes to run in too, against the reference of rounded inputs; the limit of value and gradients. */
  narrow?: Partial<Record<NarrowDType, number>>
}

export type NarrowDType = 'bf16' | 'f16'
/** One rounding of the largest number. */
export const narrowLimits: Record<NarrowDType, number> = { bf16: 2 ** -8, f16: 2 ** -11 }

function hash(text: string): number {
  let h = 2166136261
  for (const c of text) h = Math.imul(h ^ (c.codePointAt(0) ?? 0), 16777619)
  return h >>> 0
}

const size = (shape: number[]) => shape.reduce((a, b) => a * b, 1)

/** The nearest numbers of a narrow dtype. */
function rounded(data: ArrayLike<number>, dtype: NarrowDType): Float64Array {
  return Float64Array.from(ops.cast(ops.cast(tensor(Float32Array.from(data)), dtype), 'f32').toFloat32())
}

function make(spec: InputSpec, data: Float64Array, view: boolean): { leaf: Tensor; used: Tensor } {
  const dtype = spec.dtype ?? 'f32'
  const n = spec.shape.length
  const wants = spec.grad ?? dtype === 'f32'
  const build = (values: ArrayLike<number>, shape: number[]) =>
    dtype === 'i64'
      ? tensor(BigInt64Array.from(Array.from(values, (v) => BigInt(v))), shape)
      : dtype === 'u8'
        ? tensor(Uint8Array.from(values), shape)
        : tensor(Float32Array.from(values), shape)
  if (!view || n < 2) {
    const leaf = build(data, spec.shape)
    leaf.requiresGrad = wants
    return { leaf, used: leaf }
  }
  // Stored with the last two axes swapped, used through a permuted view: same values, other strides.
  const shape = [...spec.shape]
  const rows = shape[n - 2] as number
  const cols = shape[n - 1] as number
  shape[n - 2] = cols
  shape[n - 1] = rows
  const swapped = new Float64Array(data.length)
  for (let b = 0; b < data.length; b += rows * cols)
    for (let r = 0; r < rows; r++)
      for (let c = 0; c < cols; c++) swapped[b + c * rows + r] = data[b + r * cols + c] as number
  const leaf = build(swapped, shape)
  leaf.requiresGrad = wants
  const axes = shape.map((_, i) => i)
  axes[n - 2] = n - 1
  axes[n - 1] = n - 2
  return { leaf, used: ops.permute(leaf, axes) }
}

/** Registers the tests of one operation. */
export function opTest(op: string, cases: OpCase[]): void {
  for (const c of cases)
    for (const variant of ['', 'strided', ...(Object.keys(c.narrow ?? {}) as NarrowDType[])] as const)
      test(`${op}: ${c.name}${variant && `, ${variant}`}`, async (t) => {
        const view = variant === 'strided'
        const narrow = variant === 'bf16' || variant === 'f16' ? variant : null
        const limit = narrow ? c.narrow?.[narrow] : undefined
        const random = generator(hash(op + c.name))
        const x: Record<string, F64> = {}
        for (const [name, spec] of Object.entries(c.inputs)) {
          const data = new Float64Array(size(spec.shape))
          for (let i = 0; i < data.length; i++)
            data[i] = Math.fround(spec.values ? spec.values(i, random.normal) : random.normal())
          x[name] = { data: narrow && !spec.dtype ? rounded(data, narrow) : data, shape: spec.shape }
        }
        const made = Object.fromEntries(
          Object.entries(c.inputs).map(([name, spec]) => [name, make(spec, (x[name] as F64).data, view)]),
        )
        const used = Object.entries(made).map(([name, m]) => [
          name,
          narrow && m.used.dtype === 'f32' ? ops.cast(m.used, narrow) : m.used,
        ])
        const y = c.run(Object.fromEntries(used))
        const want = Float64Array.from(c.reference(x))
        compare(t, 'value', y.toFloat32(), want, limit ?? c.tolerance?.value ?? 2e-6)

        const trained = Object.entries(c.inputs).filter(([, s]) => s.grad ?? (s.dtype ?? 'f32') === 'f32')
        if (trained.length === 0 || want.length === 0) return
        const drawn = Float32Array.from(want, () => random.normal())
        const cotangent = narrow && y.dtype === narrow ? rounded(drawn, narrow) : drawn
        await backward([y], [ops.cast(tensor(Float32Array.from(cotangent), y.shape), y.dtype)])
        const objective = () => {
          const v = c.reference(x)
          let s = 0
          for (let i = 0; i < v.length; i++) s += (v[i] as number) * (cotangent[i] as number)
          return s
        }
        for (const [name, spec] of trained) {
          const g = (made[name] as { leaf: Tensor }).leaf.grad
          t.truthy(g, `${name} has no gradient`)
          if (!g) continue
          const got = view && spec.shape.length > 1 ? swapBack(g, spec.shape) : g.toFloat32()
          const data = (x[name] as F64).data
          const picks = pick(data.length, c.probes ?? 40, random.uniform)
          const expected = new Float64Array(picks.length)
          for (const [k, i] of picks.entries()) {
            const before = data[i] as number
            const step = 1e-5 * Math.max(1, Math.abs(before))
            data[i] = before + step
            const up = objective()
            data[i] = before - step
            const down = objective()
            data[i] = before
            expected[k] = (up - down) / (2 * step)
          }
          compare(
            t,
            `gradient of ${name}`,
            picks.map((i) => got[i] as number),
            expected,
            limit ?? c.tolerance?.grad ?? 1e-5,
          )
        }
      })
}

function swapBack(g: Tensor, shape: number[]): Float32Array {
  const axes = shape.map((_, i) => i)
  axes[shape.length - 2] = shape.length - 1
  axes[shape.length - 1] = shape.length - 2
  return ops.contiguous(ops.permute(g, axes)).toFloat32()
}

function pick(n: number, count: number, uniform: () => number): number[] {
  if (n <= count) return Array.from({ length: n }, (_, i) => i)
  return Array.from({ length: count }, () => Math.floor(uniform() * n))
}

interface Asserts {
  is: (a: unknown, b: unknown, message?: string) => unknown
  true: (v: boolean, message?: string) => unknown
}

/** Largest absolute difference at most `limit * max(1, largest reference value)`; NaN fails. */
export function compare(
  t: Asserts,
  what: string,
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  limit: number,
): void {
  t.is(got.length, want.length, `${what}: number of elements`)
  let worst = 0
  let scale = 1
  for (let i = 0; i < want.length; i++) {
    scale = Math.max(scale, Math.abs(want[i] as number))
    const d = Math.abs((got[i] as number) - (want[i] as number))
    worst = d <= worst ? worst : d
  }
  t.true(worst <= limit * scale, `${what}: differs by ${worst}, allowed ${limit * scale}`)
}

/** Each call must throw a DeemError with the code given. */
export function rejects(op: string, cases: Record<string, [ErrorCode, () => unknown]>): void {
  for (const [name, [code, call]] of Object.entries(cases))
    test(`${op} refuses ${name}`, (t) => {
      const error = t.throws(call)
      t.true(DeemError.isInstance(error), `threw ${error}`)
      t.is((error as DeemError).code, code, error?.message)
    })
}

/** Zeros, for calls that must be refused before they compute. */
export function zeros(...shape: number[]): Tensor {
  return tensor(new Float32Array(size(shape)), shape)
}
