// npm run bench:setup -- [--rounds N]: what the first call of a length costs beyond its later calls, ms.
//
// Each kind of work first runs at lengths 20 to 24, then at 63 others, each four times: what the first takes more than the fastest of the
// others is the set-up of that length (plans, memory from the system, cold caches). Lengths come growing, falling and shuffled, each order
// in processes of its own, N of them (default 5), and a length's figure is the median of its N. Of the 63 the median, 90 % and the worst are
// printed; one call that waits for a core is not a set-up, the same length in most processes is. Exits 1 where a figure is over 1 ms, 2 for a number of rounds that is none.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { emptyCache, noGrad, ops, type Tensor, tidy } from 'deem'
import type { Precision } from './case.js'
import { spread } from './measure.js'

const precisions: readonly Precision[] = ['bf16', 'f32']
const growing = Array.from({ length: 63 }, (_, i) => 37 + 5 * i)
/** Lengths in the order in which they come. 29 and 63 have no common factor, so that each comes once. */
const orders: Record<string, readonly number[]> = {
  growing,
  falling: growing.toReversed(),
  shuffled: growing.map((_, i) => growing[(29 * i) % growing.length] as number),
}
const limit = 1 // ms

/** Work on drawn inputs of a length. */
interface Kind {
  inputs: (length: number) => Tensor[]
  /** With gradients too, of a scalar that `run` makes. */
  trained?: Tensor
  run: (inputs: readonly Tensor[]) => Tensor
}
type Draw = (...shape: number[]) => Tensor

function kinds(draw: Draw): Record<string, Kind> {
  const one = (shape: (length: number) => number[], run: (x: Tensor) => Tensor): Kind => ({
    inputs: (length) => [draw(...shape(length))],
    run: ([x]) => run(x as Tensor),
  })
  const wide = draw(4096, 1024)
  const square = draw(512, 512)
  const trained = draw(512, 512)
  trained.requiresGrad = true
  const [conv3x3, conv1x1, depthwise] = [draw(64, 3, 3, 64), draw(128, 1, 1, 64), draw(64, 7, 7, 1)]
  const [gain, shift] = [draw(512), draw(512)]
  const rows = (length: number) => [length, 512]
  const image = (length: number) => [1, length, 16, 64]
  const pad = (n: number) => ({ padLeft: n, padRight: n, padTop: n, padBottom: n })
  const heads = (length: number) => [0, 1, 2].map(() => draw(1, length, 8, 64))
  return {
    'linear 1024 -> 4096': one(
      (length) => [length, 1024],
      (x) => ops.linear(x, wide, null, 'none'),
    ),
    'linear 512 -> 512': one(rows, (x) => ops.linear(x, square, null, 'gelu')),
    'linear, gradients': {
      ...one(rows, (x) => tidy(() => ops.sum(ops.linear(x, trained, null, 'none'), [], false))),
      trained,
    },
    'matmul a b': one(rows, (x) => ops.matmul(x, square, false, false)),
    'matmul a^T b': one(
      (length) => [512, length],
      (x) => ops.matmul(x, square, true, false),
    ),
    'conv2d 3x3': one(image, (x) => ops.conv2d(x, conv3x3, null, pad(1))),
    'conv2d 3x3, stride 2': one(image, (x) => ops.conv2d(x, conv3x3, null, { stride: 2, ...pad(1) })),
    'conv2d 1x1': one(image, (x) => ops.conv2d(x, conv1x1, null, {})),
    'conv2d depthwise 7x7': one(image, (x) => ops.conv2d(x, depthwise, null, { groups: 64, ...pad(3) })),
    'attention, causal': {
      inputs: heads,
      run: ([q, k, v]) => ops.attention(q as Tensor, k as Tensor, v as Tensor, null, { causal: true }),
    },
    'layer norm': one(rows, (x) => ops.layerNorm(x, gain, shift, 1e-6)),
    'rms norm': one(rows, (x) => ops.rmsNorm(x, gain, 1e-5)),
    softmax: one(rows, ops.softmax),
    gelu: one(rows, ops.gelu),
  }
}

/** ms of the first call of each length less its later ones, by kind. */
async function child(
  precision: Precision,
  lengths: readonly number[],
  round: number,
): Promise<Record<string, number[]>> {
  const draw: Draw = (...shape) => {
    const x = ops.randn(shape, 1, 1)
    if (precision === 'f32') return x
    const y = ops.cast(x, precision)
    x.dispose()
    return y
  }
  // The host of a virtual machine may have taken back memory that was free: to get it again costs up to 2.5 ms a megabyte, whoever asks.
  ops.full([64 << 20], 0, 'f32').dispose()
  emptyCache()
  const out: Record<string, number[]> = {}
  for (const [name, { inputs, run, trained }] of Object.entries(kinds(draw))) {
    const call = async (x: readonly Tensor[]): Promise<number> => {
      const begin = performance.now()
      const y = trained ? run(x) : noGrad(() => run(x))
      if (trained) await y.backward()
      y.dispose()
      trained?.clearGrad()
      return performance.now() - begin
    }
    const times = async (length: number, count: number): Promise<number[]> => {
      const x = inputs(length)
      const took: number[] = []
      for (let i = 0; i < count; i++) took.push(await call(x))
      for (const t of x) t.dispose()
      return took
    }
    // V8 compiles and collects after so many calls: in each round at other lengths.
    for (let length = 20; length < 25; length++) await times(length, 12 + 5 * round)
    const costs: number[] = []
    for (const length of lengths) {
      const [first, ...later] = await times(length, 4)
      costs.push((first as number) - Math.min(...later))
    }
    out[name] = costs
  }
  return out
}

function whole(text: string): number {
  const n = Number(text)
  if (!Number.isSafeInteger(n) || n < 1 || n > 100) {
    console.error(`--rounds must be a whole number from 1 to 100 but is '${text}'`)
    process.exit(2)
  }
  return n
}

const { values } = parseArgs({
  options: { rounds: { type: 'string', default: '5' }, child: { type: 'string', multiple: true } },
})
if (values.child) {
  const [precision, order, round] = values.child as [Precision, string, string]
  console.log(JSON.stringify(await child(precision, orders[order] as readonly number[], Number(round))))
} else {
  const rounds = whole(values.rounds)
  let over = 0
  console.log(`${'kind'.padEnd(22)} dtype order       median    90 %   worst (at length)`)
  for (const precision of precisions)
    for (const [order, lengths] of Object.entries(orders)) {
      const runs = Array.from({ length: rounds }, (_, round) => {
        const args = [fileURLToPath(import.meta.url), '--child', precision, '--child', order, '--child', String(round)]
        const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8' })
        if (status !== 0) throw new Error(stderr)
        return JSON.parse(stdout) as Record<string, number[]>
      })
      for (const name of Object.keys(runs[0] ?? {})) {
        const costs = lengths.map((_, at) => spread(runs.map((run) => run[name]?.[at] as number)).median)
        const sorted = costs.toSorted((a, b) => a - b)
        const worst = sorted.at(-1) as number
        const show = (ms: number) => ms.toFixed(3).padStart(7)
        const ninety = sorted[Math.ceil(0.9 * sorted.length) - 1] as number
        over += costs.filter((ms) => ms > limit).length
        console.log(
          `${name.padEnd(22)} ${precision.padEnd(5)} ${order.padEnd(10)} ${show(spread(costs).median)} ${show(ninety)} ${show(worst)} (${lengths[costs.indexOf(worst)]})`,
        )
      }
    }
  console.log(`${over} lengths cost over ${limit} ms`)
  process.exitCode = over ? 1 : 0
}
