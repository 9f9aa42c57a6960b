import test from 'ava'
import { backward, type DType, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { type F64, generator, narrowLimits, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

/** The sum over the axes named, none meaning all; `count` gets how many numbers went into each. */
function sums({ data, shape }: F64, axes: number[], count: { of: number } = { of: 1 }): Float64Array {
  const gone = shape.map((_, i) => axes.length === 0 || axes.some((a) => (a + shape.length) % shape.length === i))
  const kept = shape.filter((_, i) => !gone[i])
  const out = new Float64Array(kept.reduce((a, v) => a * v, 1))
  for (const [i, v] of data.entries()) {
    let [rest, at, step] = [i, 0, 1]
    for (let d = shape.length - 1; d >= 0; d--) {
      const size = shape[d] as number
      if (!gone[d]) {
        at += (rest % size) * step
        step *= size
      }
      rest = Math.floor(rest / size)
    }
    out[at] = (out[at] as number) + v
  }
  count.of = shape.filter((_, i) => gone[i]).reduce((a, v) => a * v, 1)
  return out
}

const narrow = { bf16: narrowLimits.bf16, f16: narrowLimits.f16 }
const reduceCase = (
  mean: boolean,
  shape: number[],
  axes: number[],
  keep = false,
  rest: Partial<OpCase> = {},
): OpCase => ({
  name: `[${shape}] over [${axes}]${keep ? ', axes kept' : ''}`,
  inputs: { x: { shape } },
  run: ({ x }) => (mean ? ops.mean : ops.sum)(x as Tensor, axes, keep),
  reference: ({ x }) => {
    const count = { of: 1 }
    return sums(x as F64, axes, count).map((v) => (mean ? v / count.of : v))
  },
  ...rest,
})

for (const mean of [false, true])
  opTest(mean ? 'mean' : 'sum', [
    reduceCase(mean, [], []),
    reduceCase(mean, [17], []),
    reduceCase(mean, [17], [0], true),
    reduceCase(mean, [3, 63], [1], false, { narrow }),
    reduceCase(mean, [3, 63], [0], true),
    reduceCase(mean, [3, 63], [-1, -2]),
    ...[[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]].map((axes) => reduceCase(mean, [4, 3, 5], axes)),
    reduceCase(mean, [2, 3, 2, 3], [0, 2], true),
    reduceCase(mean, [2, 3, 2, 3], [3, 1]),
    reduceCase(mean, [1, 5, 1, 3], [0, 2]),
    reduceCase(mean, [1, 1, 1], [1]),
    reduceCase(mean, [0, 3], [1]),
    ...(mean ? [] : [reduceCase(mean, [0, 3], [0]), reduceCase(mean, [2, 0, 3], [])]),
    // Long axes: several blocks of 16384, in the rows and across.
    reduceCase(mean, [70000], [], false, { probes: 4 }),
    reduceCase(mean, [40000, 3], [0], false, { probes: 4 }),
    reduceCase(mean, [3, 40000], [1], false, { probes: 4 }),
    reduceCase(mean, [60, 2, 600], [0, 2], false, { probes: 4 }),
  ])

const sumToCase = (shape: number[], to: number[]): OpCase => ({
  name: `[${shape}] to [${to}]`,
  inputs: { x: { shape } },
  run: ({ x }) => ops.sumTo(x as Tensor, to),
  reference: ({ x }) => {
    const lead = shape.length - to.length
    const axes = shape.flatMap((size, i) => (i < lead || to[i - lead] !== size ? [i] : []))
    return axes.length === 0 ? (x as F64).data : sums(x as F64, axes)
  },
})
opTest('sumTo', [
  sumToCase([3, 17], [17]),
  sumToCase([3, 17], [3, 1]),
  sumToCase([3, 17], []),
  sumToCase([3, 17], [3, 17]),
  sumToCase([2, 3, 4], [3, 1]),
  sumToCase([2, 3, 4, 5], [1, 3, 1, 5]),
  sumToCase([0, 3], [3]),
  sumToCase([0, 3], [1, 1]),
])

const mseCase = (shape: number[], rest: Partial<OpCase> = {}): OpCase => ({
  name: `[${shape}]`,
  inputs: { x: { shape }, y: { shape } },
  run: ({ x, y }) => ops.mseLoss(x as Tensor, y as Tensor),
  reference: ({ x, y }) => [
    (x as F64).data.reduce((a, v, i) => a + (v - ((y as F64).data[i] as number)) ** 2, 0) / (x as F64).data.length,
  ],
  ...rest,
})
opTest('mseLoss', [
  mseCase([]),
  mseCase([1]),
  mseCase([3, 17], { narrow }),
  mseCase([2, 5, 7, 3]),
  mseCase([40000], { probes: 3 }),
])

test('mseLoss: is f32 whatever it compares, and keeps what half precision would lose', (t) => {
  const y = ops.mseLoss(ops.full([5000], 300, 'f16'), ops.full([5000], 0, 'f16'))
  t.is(y.dtype, 'f32')
  t.is(y.item(), 90000)
})

test('argmax: the first of equals, NaN above all', (t) => {
  const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN]
  const rows: [number[], bigint][] = [
    [[1, 3, 3, 2], 1n],
    [[-1, -1, -1, -1], 0n],
    [[-inf, -inf, -inf, -inf], 0n],
    [[-inf, -inf, -5, -inf], 2n],
    [[inf, 1, inf, 0], 0n],
    [[1, nan, inf, nan], 1n],
    [[0, -0, 0, 0], 0n],
  ]
  t.deepEqual(
    [...ops.argmax(tensor(rows.map(([row]) => row))).read()],
    rows.map(([, at]) => at),
  )
  for (const dtype of ['bf16', 'f16'] as const)
    t.deepEqual([...ops.argmax(ops.cast(tensor([[1, 2, 2, 0]]), dtype)).read()], [1n])
})

test('argmax: every position of every width around a vector', (t) => {
  for (const n of [1, 2, 15, 16, 17, 63, 130])
    for (let at = 0; at < n; at++) {
      const row = Float32Array.from({ length: n }, (_, i) => (i === at ? 2 : Math.sin(i)))
      t.is(ops.argmax(tensor(row)).item(), at, `${at} of ${n}`)
    }
  t.deepEqual(
    [
      ...ops
        .argmax(
          ops.permute(
            tensor([
              [1, 5, 3],
              [4, 2, 6],
            ]),
            [1, 0],
          ),
        )
        .read(),
    ],
    [1n, 0n, 1n],
  )
  t.deepEqual(ops.argmax(zeros(0, 3)).shape, [0])
  t.deepEqual(ops.argmax(zeros(2, 4, 3)).shape, [2, 4])
})

test('norm: in double, over views too', (t) => {
  const x = Float32Array.from({ length: 30000 }, generator(1).normal)
  const want = Math.hypot(...x)
  const near = (got: number, to: number) => t.true(Math.abs(got - to) <= 1e-12 * to, `${got} is not ${to}`)
  near(ops.norm(tensor(x)), want)
  near(ops.norm(ops.permute(tensor(x, [300, 100]), [1, 0])), want)
  near(ops.norm(tensor([3e30, 4e30])), Math.hypot(Math.fround(3e30), Math.fround(4e30)))
  t.is(ops.norm(zeros(0)), 0)
  t.is(ops.norm(tensor(-2)), 2)
  t.is(ops.norm(ops.cast(tensor([3, 4]), 'bf16')), 5)
  t.is(ops.norm(tensor([Number.NaN])), Number.NaN)
})

test.serial('reductions: the same bits with any number of threads', async (t) => {
  const before = threads()
  const { normal } = generator(2)
  const x = tensor(Float32Array.from({ length: 210000 }, normal), [7, 30000])
  const results: unknown[] = []
  try {
    for (const count of [1, 2, 3, 8]) {
      setThreads(count)
      const leaf = tensor(x.toFloat32(), [7, 30000])
      leaf.requiresGrad = true
      const loss = ops.mseLoss(leaf, ops.full([7, 30000], 0.5, 'f32'))
      await backward([loss])
      const axes = [[], [0], [1]].map((a) => [...ops.sum(x, a, false).toFloat32()])
      results.push([axes, ops.norm(x), loss.item(), ops.norm(leaf.grad as Tensor)])
    }
  } finally {
    setThreads(before)
  }
  for (const other of results.slice(1)) t.deepEqual(other, results[0])
})

const ids = tensor(new BigInt64Array(6), [2, 3])
const tracked = zeros(2, 3)
tracked.requiresGrad = true
const cast = (x: Tensor, dtype: DType) => ops.cast(x, dtype)
rejects('reduce', {
  'sum over an axis that is not there': ['ERR_SHAPE', () => ops.sum(zeros(2, 3), [2], false)],
  'sum over an axis below -n': ['ERR_SHAPE', () => ops.sum(zeros(2, 3), [-3], false)],
  'sum over an axis named twice': ['ERR_SHAPE', () => ops.sum(zeros(2, 3), [1, -1], false)],
  'sum over an axis of a scalar': ['ERR_SHAPE', () => ops.sum(tensor(1), [0], false)],
  'sum over half an axis': ['ERR_VALUE', () => ops.sum(zeros(2, 3), [0.5], false)],
  'sum without axes': ['ERR_VALUE', () => ops.sum(zeros(2, 3), undefined as unknown as number[], false)],
  'sum of integers': ['ERR_DTYPE', () => ops.sum(ids, [], false)],
  'mean of nothing': ['ERR_SHAPE', () => ops.mean(zeros(0, 3), [0], false)],
  'mean of integers': ['ERR_DTYPE', () => ops.mean(ids, [], false)],
  'sumTo of a shape that does not broadcast': ['ERR_SHAPE', () => ops.sumTo(zeros(2, 3), [2])],
  'sumTo of a larger shape': ['ERR_SHAPE', () => ops.sumTo(zeros(3), [2, 3])],
  'sumTo of a size that grows': ['ERR_SHAPE', () => ops.sumTo(zeros(1, 3), [2, 3])],
  'sumTo of integers': ['ERR_DTYPE', () => ops.sumTo(ids, [3])],
  'mseLoss of other shapes': ['ERR_SHAPE', () => ops.mseLoss(zeros(2, 3), zeros(3))],
  'mseLoss of nothing': ['ERR_SHAPE', () => ops.mseLoss(zeros(0), zeros(0))],
  'mseLoss of mixed dtypes': ['ERR_DTYPE', () => ops.mseLoss(zeros(2), cast(zeros(2), 'bf16'))],
  'mseLoss of integers': ['ERR_DTYPE', () => ops.mseLoss(ids, ids)],
  'argmax of a scalar': ['ERR_SHAPE', () => ops.argmax(tensor(1))],
  'argmax of no columns': ['ERR_SHAPE', () => ops.argmax(zeros(2, 0))],
  'argmax of integers': ['ERR_DTYPE', () => ops.argmax(ids)],
  'argmax of a tensor that wants a gradient': ['ERR_NO_GRADIENT', () => ops.argmax(tracked)],
  'norm of integers': ['ERR_DTYPE', () => ops.norm(ids)],
})
