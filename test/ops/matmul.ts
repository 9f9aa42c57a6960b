import test from 'ava'
import { backward, ops, type Tensor, tensor } from 'deem'
import { compare, type F64, generator, narrowLimits, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

/** c[..., m, n] = sum over k of a[..., m, k] b[..., k, n]; either stored with its last two axes swapped; b may be one for all. */
function reference({ a, b }: Record<string, F64>, ta: boolean, tb: boolean): Float64Array {
  const [rows, cols] = (a as F64).shape.slice(-2) as [number, number]
  const [m, k] = ta ? [cols, rows] : [rows, cols]
  const n = (b as F64).shape.at(tb ? -2 : -1) as number
  const batch = (a as F64).shape.slice(0, -2).reduce((x, v) => x * v, 1)
  const shared = (b as F64).shape.length === 2
  const c = new Float64Array(batch * m * n)
  for (let i = 0; i < batch; i++)
    for (let r = 0; r < m; r++)
      for (let o = 0; o < n; o++)
        for (let s = 0; s < k; s++) {
          const left = (a as F64).data[i * m * k + (ta ? s * m + r : r * k + s)] as number
          const right = (b as F64).data[(shared ? 0 : i * k * n) + (tb ? o * k + s : s * n + o)] as number
          c[(i * m + r) * n + o] = (c[(i * m + r) * n + o] as number) + left * right
        }
  return c
}

interface Options extends Partial<OpCase> {
  batch?: number[]
  /** One b for the whole batch. */
  shared?: boolean
}

const kinds = [
  [false, false],
  [true, false],
  [false, true],
  [true, true],
] as const

/** The product of m x k and k x n, stored in all four ways. */
const matmulCases = (m: number, k: number, n: number, { batch = [], shared, ...rest }: Options = {}): OpCase[] =>
  kinds.map(([ta, tb]) => ({
    name: `${[...batch, m].join(' x ')} x ${k} by ${k} x ${n}${shared ? ', one b' : ''}${ta ? ', a^T' : ''}${tb ? ', b^T' : ''}`,
    inputs: {
      a: { shape: [...batch, ...(ta ? [k, m] : [m, k])] },
      b: { shape: [...(shared ? [] : batch), ...(tb ? [n, k] : [k, n])] },
    },
    run: (t) => ops.matmul(t['a'] as Tensor, t['b'] as Tensor, ta, tb),
    reference: (x) => reference(x, ta, tb),
    ...rest,
  }))

const narrow = narrowLimits
opTest('matmul', [
  ...[1, 3, 17, 63].flatMap((k) => matmulCases(1, k, 5)),
  ...[1, 3, 17, 63].flatMap((n) => matmulCases(4, 7, n, { narrow })),
  ...matmulCases(33, 31, 65, { probes: 8 }),
  ...matmulCases(5, 7, 3, { batch: [4], narrow }),
  ...matmulCases(2, 17, 3, { batch: [2, 3] }),
  ...matmulCases(1, 1, 1, { batch: [3] }),
  ...matmulCases(5, 7, 3, { batch: [4], shared: true, narrow }),
  ...matmulCases(2, 3, 5, { batch: [2, 3], shared: true }),
  ...matmulCases(0, 3, 5),
  ...matmulCases(4, 0, 5),
  ...matmulCases(4, 3, 0),
  ...matmulCases(2, 3, 4, { batch: [0] }),
  ...matmulCases(2, 3, 4, { batch: [0], shared: true }),
  ...matmulCases(2, 0, 4, { batch: [3], shared: true }),
  ...matmulCases(2, 1500, 3, { tolerance: { value: 1e-5 }, probes: 10 }),
  {
    name: 'slices of all axes',
    inputs: { a: { shape: [3, 4, 9] }, b: { shape: [2, 8, 6] } },
    run: ({ a, b }) =>
      ops.matmul(
        ops.slice(ops.slice(a as Tensor, 0, 1, 3), 2, 2, 7),
        ops.slice(ops.slice(b as Tensor, 1, 3, 8), 2, 0, 4),
        false,
        false,
      ),
    reference: ({ a, b }) => {
      const cutA = Float64Array.from(
        { length: 40 },
        (_, i) => (a as F64).data[36 + Math.floor(i / 5) * 9 + 2 + (i % 5)] as number,
      )
      const cutB = Float64Array.from({ length: 40 }, (_, i) => {
        const [batch, row, col] = [Math.floor(i / 20), Math.floor((i % 20) / 4), i % 4]
        return (b as F64).data[batch * 48 + (row + 3) * 6 + col] as number
      })
      return reference({ a: { data: cutA, shape: [2, 4, 5] }, b: { data: cutB, shape: [2, 5, 4] } }, false, false)
    },
  },
  {
    name: 'one a for the batch',
    inputs: { a: { shape: [2, 3] }, b: { shape: [4, 3, 5] } },
    run: ({ a, b }) => ops.matmul(ops.broadcastTo(a as Tensor, [4, 2, 3]), b as Tensor, false, false),
    reference: ({ a, b }) => {
      const data = Float64Array.from({ length: 24 }, (_, i) => (a as F64).data[i % 6] as number)
      return reference({ a: { data, shape: [4, 2, 3] }, b: b as F64 }, false, false)
    },
  },
  {
    name: 'a tensor times itself',
    inputs: { a: { shape: [5, 5] } },
    run: ({ a }) => ops.matmul(a as Tensor, a as Tensor, false, true),
    reference: ({ a }) => reference({ a: a as F64, b: a as F64 }, false, true),
  },
])

const bf16 = (...shape: number[]) => ops.cast(zeros(...shape), 'bf16')
const ids = (...shape: number[]) => tensor(new BigInt64Array(shape.reduce((a, v) => a * v, 1)), shape)
rejects('matmul', {
  'other inner sizes': ['ERR_SHAPE', () => ops.matmul(zeros(2, 3), zeros(4, 5), false, false)],
  'inner sizes that only fit transposed': ['ERR_SHAPE', () => ops.matmul(zeros(2, 3), zeros(5, 3), false, false)],
  'other inner sizes in a batch': ['ERR_SHAPE', () => ops.matmul(zeros(2, 2, 3), zeros(2, 4, 5), false, false)],
  'other inner sizes with one b': ['ERR_SHAPE', () => ops.matmul(zeros(2, 2, 3), zeros(4, 5), false, false)],
  'other inner sizes with one b and a transposed': [
    'ERR_SHAPE',
    () => ops.matmul(zeros(2, 3, 2), zeros(4, 5), true, false),
  ],
  'other batches': ['ERR_SHAPE', () => ops.matmul(zeros(2, 3, 4), zeros(3, 4, 5), false, false)],
  'a batch of one': ['ERR_SHAPE', () => ops.matmul(zeros(2, 3, 4), zeros(1, 4, 5), false, false)],
  'a flat a': ['ERR_SHAPE', () => ops.matmul(zeros(3, 4), zeros(2, 4, 5), false, false)],
  'a vector': ['ERR_SHAPE', () => ops.matmul(zeros(3), zeros(3, 4), false, false)],
  'two vectors': ['ERR_SHAPE', () => ops.matmul(zeros(3), zeros(3), false, false)],
  'mixed dtypes': ['ERR_DTYPE', () => ops.matmul(zeros(2, 3), bf16(3, 4), false, false)],
  integers: ['ERR_DTYPE', () => ops.matmul(ids(2, 3), ids(3, 4), false, false)],
  'too many axes': ['ERR_SHAPE', () => ops.matmul(zeros(1, 1, 1, 1, 1, 1, 1, 1, 1), zeros(1, 1), false, false)],
  'a number for a flag': ['ERR_VALUE', () => ops.matmul(zeros(2, 3), zeros(3, 4), 1 as unknown as boolean, false)],
})

test('matmul: infinities and NaN are passed on', (t) => {
  const y = ops.matmul(
    tensor([[Number.POSITIVE_INFINITY, 1]]),
    tensor([
      [1, 0],
      [Number.NaN, 2],
    ]),
    false,
    false,
  )
  t.true([...y.toFloat32()].every(Number.isNaN))
  t.deepEqual(
    [...ops.matmul(tensor([[1e38, 1e38]]), tensor([[10], [1]]), false, false).toFloat32()],
    [Number.POSITIVE_INFINITY],
  )
})

test('matmul: blocks of a large product agree with the whole', async (t) => {
  const { normal } = generator(7)
  const draw = (...shape: number[]) =>
    tensor(Float32Array.from({ length: shape.reduce((x, v) => x * v, 1) }, normal), shape)
  const [a, b] = [draw(257, 130), draw(130, 259)]
  a.requiresGrad = true
  b.requiresGrad = true
  const c = ops.matmul(a, b, false, false)
  const dc = draw(257, 259)
  await backward([c], [dc])
  const da = ops.matmul(dc, b.detach(), false, true)
  const db = ops.matmul(a.detach(), dc, true, false)
  compare(t, 'da', a.grad?.toFloat32() ?? [], da.toFloat32(), 1e-6)
  compare(t, 'db', b.grad?.toFloat32() ?? [], db.toFloat32(), 1e-6)
  for (const [from, to] of [
    [0, 1],
    [63, 65],
    [200, 257],
  ] as const) {
    const part = ops.matmul(ops.slice(a.detach(), 0, from, to), b.detach(), false, false)
    compare(t, `rows ${from}..${to}`, ops.slice(c.detach(), 0, from, to).toFloat32(), part.toFloat32(), 2e-6)
  }
})

/** Whole numbers, whose products and sums are exact in f32; [m, k] and [k, n]. */
function wholeNumbers(m: number, k: number, n: number): { a: Float32Array; b: Float32Array; c: Float32Array } {
  const draw = (length: number, step: number) => Float32Array.from({ length }, (_, i) => ((i * step) % 7) - 3)
  const [a, b, c] = [draw(m * k, 5), draw(k * n, 3), new Float32Array(m * n)]
  for (let r = 0; r < m; r++)
    for (let s = 0; s < k; s++) {
      const left = a[r * k + s] as number
      for (let o = 0; o < n; o++) c[r * n + o] = (c[r * n + o] as number) + left * (b[s * n + o] as number)
    }
  return { a, b, c }
}

/** A matrix as it lies or, `turned`, as its transpose does. */
const laid = (x: Tensor, turned: boolean) => (turned ? ops.contiguous(ops.permute(x, [1, 0])) : ops.mulScalar(x, 1))

/** What matmul gives for each way in which both may lie. */
function inEveryLayout(x: Tensor, y: Tensor, check: (got: Float32Array, layout: string) => void): void {
  for (const [ta, tb] of kinds) {
    using left = laid(x, ta)
    using right = laid(y, tb)
    using z = ops.matmul(left, right, ta, tb)
    check(z.toFloat32(), `${ta ? 'a^T' : 'a'} ${tb ? 'b^T' : 'b'}`)
  }
}

// Runs of k, blocks, chunks, the last tile's edges, and (the last three) k in parts, where the shared operand would be too large. Of bf16 in pairs: k of
// one run and more, also without a partner for its last number and with little depth; rows that are one block, or several; one to three
// registers of columns, and c or its transpose.
for (const [m, k, n] of [
  [29, 1100, 161],
  [900, 530, 40],
  [40, 1100, 1500],
  [300, 1030, 1300],
  [70, 2063, 150],
  [203, 33, 331],
  [14, 2049, 420],
  [1100, 257, 49],
  [9, 600000, 20],
  [40, 220000, 30],
  [256, 66000, 256],
] as const)
  test(`matmul: ${m} x ${k} by ${k} x ${n} is exact where sums are, however it lies, in every dtype`, (t) => {
    const { a, b, c } = wholeNumbers(m, k, n)
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const x = ops.cast(tensor(a, [m, k]), dtype)
      const y = ops.cast(tensor(b, [k, n]), dtype)
      const want = ops.cast(tensor(c, [m, n]), dtype).toFloat32()
      inEveryLayout(x, y, (got, layout) => t.deepEqual(got, want, `${dtype}, ${layout}`))
    }
  })

// The last number of a line is read beside the first of the next one.
for (const dtype of ['f32', 'bf16', 'f16'] as const)
  test(`matmul: what is not finite stays in its row and column where k is odd, ${dtype}`, (t) => {
    const [m, k, n] = [43, 33, 85]
    const { a, b, c } = wholeNumbers(m, k, n)
    const bad = 9
    for (const inA of [true, false]) {
      const [left, right] = [a.slice(), b.slice()]
      if (inA) left[bad * k] = Number.POSITIVE_INFINITY
      else right[bad] = Number.NaN
      const x = ops.cast(tensor(left, [m, k]), dtype)
      const y = ops.cast(tensor(right, [k, n]), dtype)
      const want = ops.cast(tensor(c, [m, n]), dtype).toFloat32()
      const touched = (i: number) => (inA ? Math.floor(i / n) : i % n) === bad
      inEveryLayout(x, y, (got, layout) => {
        t.deepEqual(
          got.filter((_, i) => !touched(i)),
          want.filter((_, i) => !touched(i)),
          layout,
        )
        t.true(got.every((v, i) => !touched(i) || !Number.isFinite(v)))
      })
    }
  })

test('matmul: a bias is added once where k is taken in parts', (t) => {
  const [m, k, n] = [20, 500000, 18]
  const { a, b, c } = wholeNumbers(m, k, n)
  const weight = ops.contiguous(ops.permute(tensor(b, [k, n]), [1, 0]))
  const y = ops.linear(tensor(a, [m, k]), weight, ops.full([n], 5, 'f32'), 'none')
  t.deepEqual(
    y.toFloat32(),
    c.map((v) => v + 5),
  )
})
