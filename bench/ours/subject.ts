/** One case on our side: drawn inputs, named results to compare, and the work to time. */
import { ops, Scope, type Tensor, tidy } from 'deem'
import { type Case, type Precision, type Settings, type Spec, wantsGradient } from '../case.js'

export interface Subject extends Disposable {
  /** What every peer is given, in our layout. */
  inputs: Readonly<Record<string, Tensor>>
  /** Published weights for the peers. Subjects with the same key have the same ones. */
  weights?: { key: string; save(path: string): Promise<void> }
  /** What peers must know besides the settings of the case. */
  settings?: Settings
  /** Results and gradients by name; the caller disposes them. */
  results(): Promise<Record<string, Tensor>>
  run(times: number): Promise<void>
}

export type MakeSubject = (c: Case, precision: Precision) => Promise<Subject>

function draw({ shape, fill = 'normal', scale = 1, dtype }: Spec, precision: Precision, stream: number): Tensor {
  const sizes = [...shape]
  return tidy(() => {
    if (typeof fill === 'object') {
      const ids = ops.randint(sizes, 0, fill.below, 7, stream)
      return dtype === 'i64' ? ids : ops.cast(ids, dtype ?? precision)
    }
    const f32 =
      fill === 'normal'
        ? ops.randn(sizes, 7, stream)
        : fill === 'uniform'
          ? ops.rand(sizes, 7, stream)
          : ops.full(sizes, 1, 'f32')
    return ops.cast(scale === 1 ? f32 : ops.mulScalar(f32, scale), dtype ?? precision)
  })
}

/** The inputs of a case, the same for the same case: leaves that want gradients where its pass is backward. */
export function drawInputs(c: Case, precision: Precision): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(c.inputs).map(([name, spec], i) => {
      const t = draw(spec, precision, i)
      if (c.pass === 'backward' && wantsGradient(spec)) t.requiresGrad = true
      return [name, t]
    }),
  )
}

/** Cotangents of results: normal, in their dtype, under `cotangent.NAME`. */
export function drawCotangents(results: Readonly<Record<string, Tensor>>): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(results).map(([name, y], i) => [
      `cotangent.${name}`,
      y.shape.length === 0 ? ops.full([], 1, y.dtype) : tidy(() => ops.cast(ops.randn(y.shape, 8, i), y.dtype)),
    ]),
  )
}

export function disposeAll(...groups: Readonly<Record<string, Tensor>>[]): void {
  using scope = new Scope()
  for (const group of groups) scope.keep(group)
}

/** Gradients of inputs by name, `grad.NAME`. */
export function inputGradients(inputs: Readonly<Record<string, Tensor>>): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(inputs).flatMap(([name, t]) => {
      const g = t.requiresGrad ? t.grad : null
      return g ? [[`grad.${name}`, g]] : []
    }),
  )
}
