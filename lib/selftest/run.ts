/** `deem cuda-selftest`: every operation, forward and backward, and training steps on a GPU beside the CPU, and how fast they were. */
import { DeemError } from '../errors.js'
import { loadModel } from '../load-model.js'
import type { DeemTrainInputs } from '../models/deem.js'
import { noGrad, ops } from '../ops.js'
import { tidy } from '../scope.js'
import { buildSequences, image, text } from '../sequence.js'
import { type DeviceReport, devices, synchronize } from '../system.js'
import { backward, type DType, type Tensor, tensor } from '../tensor.js'
import { AdamW } from '../train/adamw.js'
import { trainStep } from '../train/step.js'
import { type SelftestCase, selftestCases } from './cases.js'

export interface SelftestRow {
  name: string
  dtype: DType
  ok: boolean
  /** Largest difference from the CPU over the largest number, of the value and of gradients. */
  error: number
  limit: number
  /** Seconds of a forward pass, best of several; absent where it failed before. */
  seconds?: number
  bytesPerSecond?: number
  flopsPerSecond?: number
  problem?: string
}

export interface SelftestReport {
  device: DeviceReport
  rows: SelftestRow[]
}

export interface SelftestOptions {
  /** Divides sizes; 1 by default. Large numbers make it fit a slow, emulated GPU. */
  scale?: number
  onRow?: (row: SelftestRow) => void
}

/** One rounding of the largest number, or for f32 what sums of thousands in another order cost. */
const limits: Record<'f32' | 'bf16' | 'f16', number> = { f32: 2e-5, bf16: 2 ** -7, f16: 2 ** -10 }
const element = { f32: 4, bf16: 2, f16: 2 } as const
type Floating = keyof typeof limits

function difference(got: Float32Array, want: Float32Array): number {
  let worst = 0
  let largest = 1e-30
  for (let i = 0; i < want.length; i++) {
    largest = Math.max(largest, Math.abs(want[i] as number))
    const d = Math.abs((got[i] as number) - (want[i] as number))
    worst = d <= worst ? worst : d // NaN stays
  }
  return got.length === want.length ? worst / largest : Number.POSITIVE_INFINITY
}

/** Values and gradients of a case on one device, from the same draws. */
async function results(
  c: SelftestCase,
  dtype: Floating,
  device: 'cpu' | 'cuda',
): Promise<Record<string, Float32Array>> {
  const leaves = Object.fromEntries(
    Object.entries(c.inputs).map(([name, { shape, scale = 1 }], i) => [
      name,
      tidy(() => ops.cast(ops.mulScalar(ops.randn(shape, 5, i, 'cpu'), scale), dtype)).to(device),
    ]),
  ) as Record<string, Tensor>
  for (const leaf of Object.values(leaves)) leaf.requiresGrad = true
  using y = c.run(leaves)
  const out: Record<string, Float32Array> = { value: y.toFloat32() }
  using cotangent = tidy(() => ops.cast(ops.randn(y.shape, 5, 99, 'cpu'), y.dtype)).to(device)
  await backward([y], [cotangent])
  for (const [name, leaf] of Object.entries(leaves)) {
    out[`gradient of ${name}`] = (leaf.grad as Tensor).toFloat32()
    leaf.dispose()
  }
  return out
}

/** Seconds of the quickest of several forward passes. */
async function fastest(c: SelftestCase, dtype: Floating): Promise<number> {
  const leaves = Object.fromEntries(
    Object.entries(c.inputs).map(([name, { shape }], i) => [
      name,
      tidy(() => ops.cast(ops.randn(shape, 5, i, 'cpu'), dtype)).to('cuda'),
    ]),
  ) as Record<string, Tensor>
  let best = Number.POSITIVE_INFINITY
  for (let round = 0; round < 4; round++) {
    const times = round === 0 ? 1 : 10
    await synchronize()
    const begin = performance.now()
    for (let i = 0; i < times; i++) noGrad(() => c.run(leaves)).dispose()
    await synchronize()
    best = Math.min(best, (performance.now() - begin) / 1000 / times)
  }
  for (const leaf of Object.values(leaves)) leaf.dispose()
  return best
}

async function runCase(c: SelftestCase, dtype: Floating): Promise<SelftestRow> {
  const row: SelftestRow = { name: c.name, dtype, ok: false, error: Number.NaN, limit: limits[dtype] }
  try {
    const [want, got] = [await results(c, dtype, 'cpu'), await results(c, dtype, 'cuda')]
    row.error = Object.entries(want).reduce((worst, [name, w]) => {
      const d = difference(got[name] as Float32Array, w)
      return d <= worst ? worst : d
    }, 0)
    row.ok = row.error <= row.limit
    row.seconds = await fastest(c, dtype)
    row.bytesPerSecond = (c.elements * element[dtype]) / row.seconds
    if (c.flops > 0) row.flopsPerSecond = c.flops / row.seconds
  } catch (error) {
    if (!DeemError.isInstance(error)) throw error
    row.problem = `${error.code}: ${error.message}`
  }
  return row
}

/** Three steps of the bundled model on both devices, from the same weights and draws: the worst relative difference of their losses. */
async function trainingSteps(): Promise<SelftestRow> {
  const losses: Record<string, number>[] = []
  let seconds = 0
  for (const device of ['cpu', 'cuda'] as const) {
    using pipeline = await loadModel('deem-nano', { device })
    const { model, tokenizer } = pipeline
    const { imageTokens, encoderSide, painterSide } = pipeline.geometry
    const { inputs } = buildSequences(
      [
        [image(0), text('a fox on a green background.')],
        [text('a red background.', { loss: false }), image(1)],
      ],
      { tokenizer, imageTokens, maxLength: 96 },
    )
    const pictures = (side: number) => ops.rand([2, side, side, 3], 3, 0, 'cpu')
    const batch = {
      ...Object.fromEntries(Object.entries(inputs).map(([name, h]) => [name, tensor(h.data, h.shape)])),
      image_tensors: pictures(encoderSide),
      image_tensors_dec: pictures(painterSide),
    } as unknown as DeemTrainInputs
    using optimizer = new AdamW(model, { lr: 1e-4, maxGradNorm: 1 })
    for (let step = 0; step < 3; step++) {
      const begin = performance.now()
      losses.push(await trainStep(model, batch, optimizer, { seed: 1, step }))
      seconds = (performance.now() - begin) / 1000
    }
  }
  const half = losses.length / 2
  let error = 0
  for (let i = 0; i < half; i++)
    for (const [name, want] of Object.entries(losses[i] as Record<string, number>)) {
      const d = Math.abs((losses[half + i]?.[name] ?? Number.NaN) - want) / Math.max(Math.abs(want), 1e-3)
      error = d <= error ? error : d
    }
  return { name: 'training steps of deem-nano', dtype: 'f32', ok: error <= 2e-3, error, limit: 2e-3, seconds }
}

/** Draws have the same bits everywhere; normals may differ in the last two. */
async function draws(): Promise<SelftestRow> {
  const of = (device: 'cpu' | 'cuda') =>
    tidy(() => [ops.rand([10007], 3, 1, device).toFloat32(), ops.randn([10007], 3, 2, device).toFloat32()] as const)
  const [cpu, gpu] = [of('cpu'), of('cuda')]
  const uniform = difference(gpu[0], cpu[0])
  const error = uniform === 0 ? difference(gpu[1], cpu[1]) : Number.POSITIVE_INFINITY
  return { name: 'random numbers', dtype: 'f32', ok: error <= 2.4e-7, error, limit: 2.4e-7 }
}

/**
 * Runs it. Throws ERR_DEVICE, which says what is missing, where there is no usable GPU. Kernels that fail are rows that say so.
 */
export async function cudaSelftest({ scale = 1, onRow }: SelftestOptions = {}): Promise<SelftestReport> {
  tensor([0], [1], 'f32', { device: 'cuda' }).dispose() // throws what is missing
  const device = devices().find((d) => d.device.startsWith('cuda') && d.usable) as DeviceReport
  const rows: SelftestRow[] = []
  const add = (row: SelftestRow) => {
    rows.push(row)
    onRow?.(row)
  }
  add(await draws())
  for (const c of selftestCases(scale))
    for (const dtype of ['f32', 'bf16', 'f16'] as const) add(await runCase(c, dtype))
  add(await trainingSteps())
  return { device, rows }
}

/** One line of the printed table. */
export function selftestText(row: SelftestRow): string {
  const name = `${row.name} ${row.dtype}`.padEnd(40)
  if (row.problem) return `FAIL ${name} ${row.problem}`
  const time = row.seconds === undefined ? '' : `${(1e6 * row.seconds).toFixed(1)} us`.padStart(12)
  const bytes = row.bytesPerSecond === undefined ? '' : `${(row.bytesPerSecond / 1e9).toFixed(0)} GB/s`.padStart(10)
  const flops = row.flopsPerSecond === undefined ? '' : `${(row.flopsPerSecond / 1e12).toFixed(1)} TFLOP/s`.padStart(14)
  return `${row.ok ? 'ok  ' : 'FAIL'} ${name} error ${row.error.toExponential(1)} of ${row.limit.toExponential(1)}${time}${bytes}${flops}`
}
