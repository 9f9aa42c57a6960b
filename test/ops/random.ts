import test from 'ava'
import { backward, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { rejects, zeros } from '../_harness/op.js'

const [low32, high32] = [(v: bigint) => v & 0xffffffffn, (v: bigint) => v >> 32n]

/** Philox 4x32-10 as its authors define it. */
function philox(seed: bigint, stream: bigint, element: bigint): bigint[] {
  let [c0, c1, c2, c3] = [low32(element), high32(element), low32(stream), high32(stream)]
  let [k0, k1] = [low32(seed), high32(seed)]
  for (let round = 0; round < 10; round++) {
    const [p0, p1] = [0xd2511f53n * c0, 0xcd9e8d57n * c2]
    ;[c0, c1, c2, c3] = [high32(p1) ^ c1 ^ k0, low32(p1), high32(p0) ^ c3 ^ k1, low32(p0)]
    ;[k0, k1] = [low32(k0 + 0x9e3779b9n), low32(k1 + 0xbb67ae85n)]
  }
  return [c0, c1, c2, c3]
}
const uniform = (word: bigint) => Number(word >> 8n) / 2 ** 24
const word = (seed: number, stream: number, i: number, per: number) =>
  philox(BigInt.asUintN(64, BigInt(seed)), BigInt.asUintN(64, BigInt(stream)), BigInt(Math.floor(i / per)))

test('the generator here gives the published numbers', (t) => {
  t.deepEqual(philox(0n, 0n, 0n), [0x6627e8d5n, 0xe169c58dn, 0xbc57ac4cn, 0x9b00dbd8n])
  t.deepEqual(philox(0x299f31d0a4093822n, 0x0370734413198a2en, 0x85a308d3243f6a88n), [
    0xd16cfe09n,
    0x94fdccebn,
    0x5001e420n,
    0x24126ea1n,
  ])
})

const seeds: [seed: number, stream: number][] = [
  [0, 0],
  [1, 0],
  [0, 1],
  [2 ** 40 + 3, 2 ** 35 + 1],
  [-1, 5],
]
test('rand: its very bits, at every size around a block', (t) => {
  for (const [seed, stream] of seeds)
    for (const n of [0, 1, 3, 4, 255, 256, 257, 600]) {
      const got = ops.rand([n], seed, stream).toFloat32()
      const want = Array.from({ length: n }, (_, i) => uniform(word(seed, stream, i, 4)[i % 4] as bigint))
      t.deepEqual([...got], want, `seed ${seed} stream ${stream} n ${n}`)
    }
})

test('randn: radius and angle of two words each', (t) => {
  for (const [seed, stream] of seeds)
    for (const n of [1, 2, 127, 129, 300]) {
      const got = ops.randn([n], seed, stream).toFloat32()
      for (let i = 0; i < n; i++) {
        const [u, v] = word(seed, stream, i, 2) as [bigint, bigint]
        const angle = 2 * Math.PI * uniform(v)
        const want = Math.sqrt(-2 * Math.log((Number(u) + 1) / 2 ** 32)) * (i % 2 ? Math.sin(angle) : Math.cos(angle))
        t.true(Math.abs((got[i] as number) - want) < 3e-6, `seed ${seed} element ${i}: ${got[i]}, not ${want}`)
      }
    }
})

test('randint: exact over any range', (t) => {
  const ranges: [number, number][] = [
    [0, 1],
    [0, 2],
    [-5, 7],
    [-(2 ** 52), 2 ** 52],
    [0, Number.MAX_SAFE_INTEGER],
  ]
  for (const [low, high] of ranges) {
    const got = ops.randint([200], low, high, 11, 3).read()
    for (const [i, v] of got.entries()) {
      const [w0, w1] = word(11, 3, i, 1) as [bigint, bigint]
      t.is(v, BigInt(low) + ((((w1 << 32n) | w0) * BigInt(high - low)) >> 64n), `${low}..${high}`)
    }
  }
})

/** Mean, variance and the correlation of neighbours, against what they vary by for n draws: five standard errors. */
function judge(
  t: { true: (v: boolean, m: string) => unknown },
  x: Float32Array,
  mean: number,
  variance: number,
  kurtosis: number,
) {
  const n = x.length
  const m = x.reduce((a, v) => a + v, 0) / n
  const v = x.reduce((a, e) => a + (e - mean) ** 2, 0) / n
  const lag = x.reduce((a, e, i) => (i === 0 ? 0 : a + (e - mean) * ((x[i - 1] as number) - mean)), 0) / n
  t.true(Math.abs(m - mean) < 5 * Math.sqrt(variance / n), `mean ${m}`)
  t.true(Math.abs(v - variance) < 5 * variance * Math.sqrt((kurtosis - 1) / n), `variance ${v}`)
  t.true(Math.abs(lag) < (5 * variance) / Math.sqrt(n), `neighbours correlate by ${lag}`)
}
test('draws have the moments they should', (t) => {
  judge(t, ops.rand([200000], 1, 2).toFloat32(), 0.5, 1 / 12, 1.8)
  judge(t, ops.randn([200000], 1, 2).toFloat32(), 0, 1, 3)
  judge(t, ops.randint([200000], 0, 10, 1, 2).toFloat32(), 4.5, 8.25, 1.7757575)
  const tail = ops
    .randn([200000], 3, 0)
    .toFloat32()
    .filter((v) => Math.abs(v) > 3).length
  t.true(Math.abs(tail - 540) < 5 * Math.sqrt(540), `${tail} beyond 3`)
})

test('other seeds and streams are other numbers; a shape is only a shape', (t) => {
  const draws = [ops.rand([64], 1, 0), ops.rand([64], 2, 0), ops.rand([64], 1, 1), ops.rand([64], 0, 1)]
  const texts = draws.map((d) => d.toFloat32().join())
  const first = texts[0] as string
  t.is(new Set(texts).size, texts.length)
  t.is(ops.rand([4, 2, 8], 1, 0).toFloat32().join(), first)
  t.is(ops.rand([200], 1, 0).toFloat32().subarray(0, 64).join(), first)
})

const dropped = { dropout: ops.dropout, dropPath: ops.dropPath }
for (const [name, run] of Object.entries(dropped)) {
  const perRow = name === 'dropPath'

  test(`${name}: keeps what its words say, scaled, and the gradient likewise`, async (t) => {
    for (const shape of [[1], [300], [37, 11], [5, 3, 7], [0, 4]])
      for (const p of [0.1, 0.5, 0.9]) {
        const n = shape.reduce((a, v) => a * v, 1)
        const x = ops.randn(shape, 9, 9)
        x.requiresGrad = true
        const y = run(x, p, 21, 4)
        const width = perRow ? n / (shape[0] as number) : 1
        // Draws of the operation API start at stream `stream * 2^32`.
        const kept = (i: number) => {
          const row = Math.floor(i / width)
          const words = word(21, 4 * 2 ** 32, row, perRow ? 1 : 4)
          return (words[perRow ? 0 : row % 4] as bigint) >= BigInt(Math.floor(p * 2 ** 32))
        }
        const scale = Math.fround(1 / (1 - p))
        const values = x.toFloat32()
        const want = Array.from(values, (v, i) => (kept(i) ? Math.fround(v * scale) : 0))
        t.deepEqual([...y.toFloat32()], want, `[${shape}] ${p}`)
        await backward([y], [ops.full(shape, 1, 'f32')])
        t.deepEqual(
          [...(x.grad as Tensor).toFloat32()],
          want.map((_, i) => (kept(i) ? scale : 0)),
          `[${shape}] ${p}`,
        )
      }
  })

  test(`${name}: drops as many as asked and leaves the mean alone`, (t) => {
    const rows = 40000
    const x = ops.full([rows, 2], 1, 'f32')
    for (const p of [0.05, 0.3, 0.99]) {
      const y = run(x, p, 5, 6).toFloat32()
      const draws = perRow ? rows : 2 * rows
      const kept = y.filter((v) => v !== 0).length / (perRow ? 2 : 1)
      t.true(Math.abs(kept - draws * (1 - p)) < 5 * Math.sqrt(draws * p * (1 - p)), `${kept} of ${draws} at ${p}`)
      if (perRow) for (let r = 0; r < rows; r++) if (y[2 * r] !== y[2 * r + 1]) return t.fail(`row ${r} is torn`)
    }
    t.pass()
  })

  test(`${name}: nothing to drop is the input; NaN is dropped too; views and narrow dtypes`, (t) => {
    const x = tensor([
      [1, 2, 3],
      [4, 5, 6],
    ])
    t.deepEqual([...run(x, 0, 1, 1).toFloat32()], [1, 2, 3, 4, 5, 6])
    const bad = run(ops.full([64, 2], Number.NaN, 'f32'), 0.5, 1, 1).toFloat32()
    t.true(bad.some((v) => v === 0) && bad.some(Number.isNaN))
    const view = ops.permute(x, [1, 0])
    t.deepEqual(run(view, 0.5, 3, 1).toFloat32(), run(ops.contiguous(view), 0.5, 3, 1).toFloat32())
    for (const dtype of ['bf16', 'f16'] as const) {
      const y = run(ops.cast(x, dtype), 0.5, 3, 1)
      t.is(y.dtype, dtype)
      t.deepEqual(y.toFloat32(), run(x, 0.5, 3, 1).toFloat32())
    }
  })

  rejects(name, {
    'p = 1': ['ERR_VALUE', () => run(zeros(2, 3), 1, 0, 0)],
    'a negative p': ['ERR_VALUE', () => run(zeros(2, 3), -0.1, 0, 0)],
    'a p that is no number': ['ERR_VALUE', () => run(zeros(2, 3), Number.NaN, 0, 0)],
    integers: ['ERR_DTYPE', () => run(tensor(new BigInt64Array(2)), 0.5, 0, 0)],
    'half a seed': ['ERR_VALUE', () => run(zeros(2, 3), 0.5, 0.5, 0)],
    ...(perRow && { 'a scalar': ['ERR_SHAPE', () => run(tensor(1), 0.5, 0, 0)] as const }),
  })
}

test.serial('random: the same bits with any number of threads', (t) => {
  const before = threads()
  const results: unknown[] = []
  try {
    for (const count of [1, 2, 3, 8]) {
      setThreads(count)
      const x = ops.randn([70001], 1, 2)
      const all = [x, ops.rand([70001], 1, 2), ops.randint([70001], 0, 9, 1, 2), ops.dropout(x, 0.3, 1, 2)]
      results.push(all.map((y) => [...y.toFloat32()].reduce((a, v, i) => (a * 31 + v * (i % 97)) % 1e9, 0)))
    }
  } finally {
    setThreads(before)
  }
  for (const other of results.slice(1)) t.deepEqual(other, results[0])
})

rejects('random', {
  'rand of a negative size': ['ERR_SHAPE', () => ops.rand([-1], 0, 0)],
  'rand of nine axes': ['ERR_SHAPE', () => ops.rand([1, 1, 1, 1, 1, 1, 1, 1, 1], 0, 0)],
  'rand of too many elements': ['ERR_SHAPE', () => ops.rand([2 ** 30, 2 ** 30], 0, 0)],
  'rand without a seed': ['ERR_VALUE', () => ops.rand([2], undefined as unknown as number, 0)],
  'rand with half a seed': ['ERR_VALUE', () => ops.rand([2], 0.5, 0)],
  'rand with a seed beyond whole numbers': ['ERR_VALUE', () => ops.rand([2], 2 ** 60, 0)],
  'randn of half a size': ['ERR_VALUE', () => ops.randn([1.5], 0, 0)],
  'randint of an empty range': ['ERR_VALUE', () => ops.randint([2], 3, 3, 0, 0)],
  'randint of a range upside down': ['ERR_VALUE', () => ops.randint([2], 3, 1, 0, 0)],
  'randint with a bound that is no number': ['ERR_VALUE', () => ops.randint([2], Number.NaN, 1, 0, 0)],
})
