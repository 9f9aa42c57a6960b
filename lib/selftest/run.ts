/** `deem cuda-selftest`: every operation, forward and backward, and training steps on a GPU beside the CPU, and how fast they were. */
import { DeemError } from '../errors.js'
import { loadModel } from '../load-model.js'
import type { DeemTrainInputs } from '../models/deem.js'
import { noGrad, ops } from '../ops.js'
import { tidy } from '../scope.js'
import { buildSequences, image, text } from '../sequence.js'
import { type DeviceReport, devices, synchronize } from '../system.js'
import { backward, type DType, elementBytes, type Tensor, tensor } from '../tensor.js'
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
  onRow?: (row: SelftestRow, device: DeviceReport) => void
}

/** One rounding of the largest number, or for f32 what sums of thousands in another order cost. */
const limits: Record<'f32' | 'bf16' | 'f16', number> = { f32: 2e-5, bf16: 2 ** -7, f16: 2 ** -10 }
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

/** Inputs of a case from the draws that both devices get, and its constants. */
function inputsOf(c: SelftestCase, dtype: Floating, device: 'cpu' | 'cuda') {
  const leaves = Object.fromEntries(
    Object.entries(c.inputs).map(([name, { shape, scale = 1, shift = 0 }], i) => [
      name,
      tidy(() => ops.cast(ops.addScalar(ops.mulScalar(ops.randn(shape, 5, i, 'cpu'), scale), shift), dtype).to(device)),
    ]),
  ) as Record<string, Tensor>
  const constants = tidy(() =>
    Object.fromEntries(Object.entries(c.constants?.() ?? {}).map(([name, t]) => [name, t.to(device)])),
  )
  const all = { ...leaves, ...constants }
  return {
    leaves,
    all,
    [Symbol.dispose]: () => {
      for (const t of Object.values(all)) t.dispose()
    },
  }
}

/** Values and gradients of a case on one device. */
async function results(
  c: SelftestCase,
  dtype: Floating,
  device: 'cpu' | 'cuda',
): Promise<Record<string, Float32Array>> {
  using inputs = inputsOf(c, dtype, device)
  const { leaves, all } = inputs
  for (const leaf of Object.values(leaves)) leaf.requiresGrad = !c.forwardOnly
  using y = c.run(all)
  const out: Record<string, Float32Array> = { value: y.toFloat32() }
  if (c.forwardOnly) return out
  using cotangent = tidy(() => ops.cast(ops.randn(y.shape, 5, 99, 'cpu'), y.dtype).to(device))
  await backward([y], [cotangent])
  for (const [name, leaf] of Object.entries(leaves)) {
    using gradient = leaf.grad as Tensor
    out[`gradient of ${name}`] = gradient.toFloat32()
  }
  return out
}

/** Seconds of the quickest of several forward passes, and the bytes of what one reads and writes. */
async function fastest(c: SelftestCase, dtype: Floating): Promise<{ seconds: number; bytes: number }> {
  using inputs = inputsOf(c, dtype, 'cuda')
  using y = noGrad(() => c.run(inputs.all))
  const bytes = [...Object.values(inputs.all), y].reduce((sum, t) => sum + t.size * elementBytes[t.dtype], 0)
  let best = Number.POSITIVE_INFINITY
  for (let round = 0; round < 4; round++) {
    const times = round === 0 ? 1 : 10
    await synchronize()
    const begin = performance.now()
    for (let i = 0; i < times; i++) noGrad(() => c.run(inputs.all)).dispose()
    await synchronize()
    best = Math.min(best, (performance.now() - begin) / 1000 / times)
  }
  return { seconds: best, bytes }
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
    const { seconds, bytes } = await fastest(c, dtype)
    row.seconds = seconds
    row.bytesPerSecond = bytes / seconds
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

/** AdamW alone, clipping included, over `count` numbers in two tensors. */
async function optimizerSteps(count: number): Promise<SelftestRow> {
  const after: Float32Array[] = []
  let seconds = Number.POSITIVE_INFINITY
  for (const device of ['cpu', 'cuda'] as const) {
    const parameters = [count - 7, 7].map((n, i) => tidy(() => ops.randn([n], 7, i, 'cpu').to(device)))
    for (const p of parameters) p.requiresGrad = true
    using optimizer = new AdamW(
      { a: parameters[0] as Tensor, b: parameters[1] as Tensor },
      { lr: 0.01, maxGradNorm: 1, weightDecay: 0.1 },
    )
    for (let step = 0; step < 4; step++) {
      const cotangents = parameters.map((p, i) => tidy(() => ops.randn(p.shape, 8 + step, i, 'cpu').to(device)))
      await backward(
        parameters.map((p) => ops.mulScalar(p, 1)),
        cotangents,
      )
      await synchronize()
      const begin = performance.now()
      await optimizer.step()
      await synchronize()
      if (device === 'cuda') seconds = Math.min(seconds, (performance.now() - begin) / 1000)
      optimizer.zeroGrad()
      for (const t of cotangents) t.dispose()
    }
    for (const p of parameters) {
      after.push(p.toFloat32())
      p.dispose()
    }
  }
  const half = after.length / 2
  const error = Math.max(...after.slice(0, half).map((w, i) => difference(after[half + i] as Float32Array, w)))
  // Gradients once for their norm; then gradients, moments and weights are read, and the last two written.
  const bytes = count * 4 * 8
  return {
    name: 'AdamW',
    dtype: 'f32',
    ok: error <= 2e-6,
    error,
    limit: 2e-6,
    seconds,
    bytesPerSecond: bytes / seconds,
  }
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
    onRow?.(row, device)
  }
  add(await draws())
  for (const c of selftestCases(scale))
    for (const dtype of ['f32', 'bf16', 'f16'] as const) add(await runCase(c, dtype))
  add(await optimizerSteps(Math.max(1000, Math.floor((1 << 26) / scale ** 2))))
  add(await trainingSteps())
  return { device, rows }
}

/** One line of the printed table; rates also as parts of what the GPU's clocks allow, where that is known. */
export function selftestText(row: SelftestRow, device: DeviceReport): string {
  const name = `${row.name} ${row.dtype}`.padEnd(40)
  if (row.problem) return `FAIL ${name} ${row.problem}`
  const part = (rate: number, limit: number) => (limit > 0 ? ` ${((100 * rate) / limit).toFixed(0)} %` : '')
  const peak = row.dtype === 'f32' ? device.f32Rate : device.tensorRate
  const { seconds, bytesPerSecond: bytes, flopsPerSecond: flops } = row
  const cells = [
    seconds === undefined ? '' : `${(1e6 * seconds).toFixed(1)} us`.padStart(12),
    bytes === undefined ? '' : `${(bytes / 1e9).toFixed(0)} GB/s${part(bytes, device.memoryRate)}`.padStart(16),
    flops === undefined ? '' : `${(flops / 1e12).toFixed(1)} TFLOP/s${part(flops, peak)}`.padStart(20),
  ]
  return `${row.ok ? 'ok  ' : 'FAIL'} ${name} error ${row.error.toExponential(1)} of ${row.limit.toExponential(1)}${cells.join('')}`
}
