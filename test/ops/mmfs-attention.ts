import test from 'ava'
import { backward, type MmfsOptions, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { addSample, type LevelShapes } from '../_harness/bilinear.js'
import { type F64, generator, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

/** What the published module computes, hidden images with their -10000 included. */
function reference(x: Record<string, F64>, o: MmfsOptions): Float64Array {
  const { value, offsets, offsetTable, logits, logitTable, relative, referencePoints, ignoreToken } = x as Record<
    string,
    F64
  >
  const [b, n, s, wide] = (value as F64).shape as [number, number, number, number]
  const q = (offsets as F64).shape[1] as number
  const d = wide / o.heads
  const slots = o.levelShapes.length * (o.points + 1)
  const y = new Float64Array(b * q * wide)
  const at = (t: F64 | undefined, i: number) => (t as F64).data[i] as number
  for (let i = 0; i < b; i++)
    for (let j = 0; j < q; j++)
      for (let h = 0; h < o.heads; h++) {
        const seen = Array.from({ length: n }, (_, k) => at(relative, (i * n + k) * q + j))
        const all = seen.map((r) =>
          Array.from({ length: slots }, (_, k) => {
            if (k % (o.points + 1) === o.points) return -Math.log(n * o.levelShapes.length)
            const own = at(logits, ((i * q + j) * o.heads + h) * slots + k)
            return own + at(logitTable, (r * o.heads + h) * slots + k) - (r === 0 ? 10000 : 0)
          }),
        )
        const top = Math.max(...all.flat())
        const total = all.flat().reduce((a, v) => a + Math.exp(v - top), 0)
        const prob = all.map((row) => row.map((v) => Math.exp(v - top) / total))
        const ignored = n === 0 ? 1 : prob.flat().reduce((a, v, k) => (k % (o.points + 1) === o.points ? a + v : a), 0)
        const to = (i * q + j) * wide + h * d
        for (let c = 0; c < d; c++) y[to + c] = ignored * at(ignoreToken, h * d + c)
        for (let k = 0; k < n; k++) {
          let row = (i * n + k) * s
          for (const [l, [height, width]] of o.levelShapes.entries()) {
            const scale = o.scaleRatios[l] as number
            for (let p = 0; p < o.points; p++) {
              const c = (h * o.points + p) * 2
              const pixel = (axis: number, size: number) =>
                at(referencePoints, ((referencePoints as F64).shape[0] === 1 ? 0 : j) * 2 + axis) * size +
                (at(offsets, (i * q + j) * o.heads * o.points * 2 + c + axis) +
                  at(offsetTable, (seen[k] as number) * o.heads * o.points * 2 + c + axis)) *
                  scale -
                0.5
              const weight = (prob[k] as number[])[l * (o.points + 1) + p] as number
              addSample(
                y,
                to,
                value as F64,
                row,
                [height, width],
                [h * d, d],
                [pixel(0, width), pixel(1, height)],
                weight,
              )
            }
            row += height * width
          }
        }
      }
  return y
}

const call = (t: Record<string, Tensor>, o: MmfsOptions) => {
  const { value, offsets, offsetTable, logits, logitTable, relative, referencePoints, ignoreToken } = t as Record<
    string,
    Tensor
  >
  return ops.mmfsAttention(
    value as Tensor,
    offsets as Tensor,
    offsetTable as Tensor,
    logits as Tensor,
    logitTable as Tensor,
    relative as Tensor,
    referencePoints as Tensor,
    ignoreToken as Tensor,
    o,
  )
}

interface Sizes {
  b?: number
  n: number
  q: number
  h: number
  d: number
  p: number
  levels: LevelShapes
  /** Relative index of image k for query j; 0 hides it. */
  relative?: (k: number, j: number) => number
  oneReference?: boolean
}

const rows = (levels: LevelShapes) => levels.reduce((a, [h, w]) => a + h * w, 0)
const M = 5

const shapes = ({ b = 2, n, q, h, d, p, levels, oneReference }: Sizes) => ({
  value: [b, n, rows(levels), h * d],
  offsets: [b, q, h * p * 2],
  offsetTable: [M, h * p * 2],
  logits: [b, q, h * levels.length * (p + 1)],
  logitTable: [M, h * levels.length * (p + 1)],
  relative: [b, n, q],
  referencePoints: [oneReference ? 1 : q, 2],
  ignoreToken: [h * d],
})

const optionsOf = ({ h, p, levels }: Sizes): MmfsOptions => ({
  heads: h,
  points: p,
  levelShapes: levels,
  scaleRatios: levels.map((_, i) => 1.5 / (i + 1)),
})

const mmfsCase = (name: string, z: Sizes): OpCase => {
  const { value, offsets, offsetTable, logits, logitTable, relative, referencePoints, ignoreToken } = shapes(z)
  const index = z.relative ?? ((k, j) => (k + j) % (z.n + 1))
  return {
    name,
    inputs: {
      value: { shape: value },
      offsets: { shape: offsets },
      offsetTable: { shape: offsetTable },
      logits: { shape: logits },
      logitTable: { shape: logitTable },
      relative: { shape: relative, dtype: 'i64', values: (i) => index(Math.floor(i / z.q) % z.n, i % z.q) },
      referencePoints: { shape: referencePoints, values: (_, normal) => 0.5 + 0.4 * Math.tanh(normal()) },
      ignoreToken: { shape: ignoreToken },
    },
    run: (t) => call(t, optionsOf(z)),
    reference: (x) => reference(x, optionsOf(z)),
  }
}

opTest('mmfsAttention', [
  mmfsCase('three levels, hidden images', {
    n: 3,
    q: 4,
    h: 2,
    d: 5,
    p: 3,
    levels: [
      [3, 4],
      [2, 2],
      [1, 1],
    ],
  }),
  mmfsCase('one reference point', {
    n: 2,
    q: 5,
    h: 3,
    d: 4,
    p: 2,
    levels: [
      [4, 4],
      [2, 3],
    ],
    oneReference: true,
  }),
  mmfsCase('wide heads', { b: 1, n: 2, q: 3, h: 1, d: 100, p: 4, levels: [[5, 5]] }),
  mmfsCase('heads of 16', {
    b: 1,
    n: 2,
    q: 6,
    h: 2,
    d: 16,
    p: 4,
    levels: [
      [6, 6],
      [3, 3],
    ],
  }),
  mmfsCase('heads of 2', { b: 1, n: 1, q: 6, h: 4, d: 2, p: 1, levels: [[2, 2]] }),
  mmfsCase('few queries of a large map', { b: 1, n: 2, q: 1, h: 2, d: 8, p: 2, levels: [[16, 16]] }),
  mmfsCase('every image hidden', { n: 2, q: 3, h: 2, d: 4, p: 2, levels: [[3, 3]], relative: () => 0 }),
  mmfsCase('no images', { n: 0, q: 3, h: 2, d: 4, p: 2, levels: [[3, 3]] }),
  mmfsCase('no queries', { n: 2, q: 0, h: 2, d: 4, p: 2, levels: [[3, 3]], oneReference: true }),
  mmfsCase('no rows', { b: 0, n: 2, q: 3, h: 2, d: 4, p: 2, levels: [[3, 3]] }),
])

const z: Sizes = {
  n: 2,
  q: 30,
  h: 3,
  d: 16,
  p: 4,
  levels: [
    [8, 8],
    [4, 4],
  ],
}

function randomInputs(seed: number, relative: (i: number) => number): Record<string, Tensor> {
  const { normal } = generator(seed)
  return Object.fromEntries(
    Object.entries(shapes(z)).map(([name, shape]) => {
      const size = shape.reduce((a, v) => a * v, 1)
      if (name === 'relative')
        return [
          name,
          tensor(
            BigInt64Array.from({ length: size }, (_, i) => BigInt(relative(i))),
            shape,
          ),
        ]
      const x = tensor(Float32Array.from({ length: size }, normal), shape)
      x.requiresGrad = true
      return [name, x]
    }),
  )
}

test('mmfsAttention: the same bits at any number of threads', async (t) => {
  const before = threads()
  const run = async (n: number) => {
    setThreads(n)
    const x = randomInputs(1, (i) => i % 3)
    const y = call(x, optionsOf(z))
    await backward([y], [ops.tanh(y).detach()])
    return [y, ...Object.values(x).map((v) => v.grad)].filter((v) => v !== null).map((v) => v.toFloat32())
  }
  try {
    const one = await run(1)
    t.is(one.length, 8)
    for (const n of [2, 3, 7]) t.deepEqual(await run(n), one)
  } finally {
    setThreads(before)
  }
})

test('mmfsAttention: offsets that are no numbers or far away sample nothing', async (t) => {
  const x = randomInputs(2, () => 1)
  const { shape } = x['offsets'] as Tensor
  const strange = [Number.NaN, Number.POSITIVE_INFINITY, -1e30, 3e9]
  x['offsets'] = tensor(
    Float32Array.from({ length: shape.reduce((a, v) => a * v, 1) }, (_, i) => strange[i % 4] as number),
    shape,
  )
  const y = call(x, optionsOf(z))
  t.true(y.toFloat32().every(Number.isFinite))
  await backward([y], [ops.full(y.shape, 1, 'f32')])
  t.true((x['value'] as Tensor).grad?.toFloat32().every((v) => v === 0))
  t.true((x['offsetTable'] as Tensor).grad?.toFloat32().every((v) => v === 0))
})

const refusal =
  (changed: Partial<Record<keyof ReturnType<typeof shapes>, number[]>>, o: Partial<MmfsOptions> = {}) =>
  () => {
    const t = Object.fromEntries(
      Object.entries({ ...shapes(z), ...changed }).map(([name, shape]) => [name, zeros(...shape)]),
    )
    if (!changed.relative) t['relative'] = ops.cast(t['relative'] as Tensor, 'i64')
    return call(t, { ...optionsOf(z), ...o })
  }

rejects('mmfsAttention', {
  'a value that the heads do not divide': ['ERR_SHAPE', refusal({ value: [2, 2, 80, 47] })],
  'a value of other levels': ['ERR_SHAPE', refusal({ value: [2, 2, 79, 48] })],
  'offsets of other points': ['ERR_SHAPE', refusal({ offsets: [2, 30, 18] })],
  'logits of other levels': ['ERR_SHAPE', refusal({ logits: [2, 30, 15] })],
  'tables of different lengths': ['ERR_SHAPE', refusal({ logitTable: [4, 30] })],
  'reference points of other queries': ['ERR_SHAPE', refusal({ referencePoints: [2, 2] })],
  'an ignore token of another width': ['ERR_SHAPE', refusal({ ignoreToken: [16] })],
  'relative indices that are floats': ['ERR_DTYPE', refusal({ relative: [2, 2, 30] })],
  'a scale ratio too few': ['ERR_SHAPE', refusal({}, { scaleRatios: [1] })],
  'a scale ratio that is no number': ['ERR_VALUE', refusal({}, { scaleRatios: [1, Number.NaN] })],
  'no points': ['ERR_VALUE', refusal({}, { points: 0 })],
  'a relative index beyond the table': [
    'ERR_INDEX',
    () =>
      call(
        randomInputs(3, () => M),
        optionsOf(z),
      ),
  ],
  'a negative relative index': [
    'ERR_INDEX',
    () =>
      call(
        randomInputs(3, () => -1),
        optionsOf(z),
      ),
  ],
})
