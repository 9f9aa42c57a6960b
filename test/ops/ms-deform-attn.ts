import test from 'ava'
import { backward, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { addSample, type LevelShapes } from '../_harness/bilinear.js'
import { type F64, generator, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

function reference({ value, locations, weights }: Record<string, F64>, levels: LevelShapes): Float64Array {
  const [b, s, h, d] = (value as F64).shape as [number, number, number, number]
  const [, q, , , p] = (weights as F64).shape as [number, number, number, number, number]
  const flat: F64 = { data: (value as F64).data, shape: [b, s, h * d] }
  const y = new Float64Array(b * q * h * d)
  let k = 0
  for (let i = 0; i < b; i++)
    for (let j = 0; j < q; j++)
      for (let head = 0; head < h; head++) {
        let row = i * s
        for (const [height, width] of levels) {
          for (let n = 0; n < p; n++, k++) {
            const at = (locations as F64).data.subarray(2 * k, 2 * k + 2) as unknown as [number, number]
            addSample(
              y,
              ((i * q + j) * h + head) * d,
              flat,
              row,
              [height, width],
              [head * d, d],
              [at[0] * width - 0.5, at[1] * height - 0.5],
              (weights as F64).data[k] as number,
            )
          }
          row += height * width
        }
      }
  return y
}

const rowsOf = (levels: LevelShapes) => levels.reduce((a, [h, w]) => a + h * w, 0)

const deformCase = (
  b: number,
  q: number,
  h: number,
  d: number,
  p: number,
  levels: LevelShapes,
  reach = 0.3,
): OpCase => ({
  name: `b ${b} q ${q} h ${h} d ${d} p ${p} levels ${levels.join(' ')}`,
  inputs: {
    value: { shape: [b, rowsOf(levels), h, d] },
    locations: {
      shape: [b, q, h, levels.length, p, 2],
      values: (_, normal) => 0.5 + (0.5 + reach) * Math.tanh(normal()),
    },
    weights: { shape: [b, q, h, levels.length, p] },
  },
  run: ({ value, locations, weights }) =>
    ops.msDeformAttn(value as Tensor, levels, locations as Tensor, weights as Tensor),
  reference: (v) => reference(v, levels),
})

opTest('msDeformAttn', [
  deformCase(2, 3, 2, 4, 3, [
    [4, 5],
    [2, 2],
  ]),
  deformCase(1, 7, 1, 3, 2, [
    [1, 1],
    [1, 6],
  ]),
  deformCase(1, 5, 3, 33, 1, [[7, 3]]),
  deformCase(2, 4, 2, 64, 4, [
    [6, 6],
    [3, 3],
    [2, 2],
  ]),
  deformCase(1, 1, 2, 8, 2, [[16, 16]]),
  deformCase(2, 0, 2, 8, 2, [[4, 4]]),
  deformCase(0, 3, 2, 8, 2, [[4, 4]]),
])

const levels: LevelShapes = [[4, 4]]

test('msDeformAttn: on the centre of a pixel the derivative is that of the cell to its right and below', async (t) => {
  const value = tensor(
    Float32Array.from({ length: 16 }, (_, i) => i * i),
    [1, 16, 1, 1],
  )
  const locations = tensor([1.5 / 4, 2.5 / 4], [1, 1, 1, 1, 1, 2])
  locations.requiresGrad = true
  const y = ops.msDeformAttn(value, levels, locations, tensor([1], [1, 1, 1, 1, 1]))
  t.is(y.item(), 81)
  await backward([y], [tensor([1], y.shape)])
  t.deepEqual([...(locations.grad as Tensor).toFloat32()], [4 * (100 - 81), 4 * (169 - 81)])
})

test('msDeformAttn: locations that are no numbers or far away contribute nothing', async (t) => {
  const far = [Number.NaN, 0.5, Number.POSITIVE_INFINITY, 0.5, 0.5, Number.NEGATIVE_INFINITY, 1e30, -1e30, 3e9, 0.5]
  const value = ops.full([1, 16, 1, 2], 1, 'f32')
  value.requiresGrad = true
  const locations = tensor(Float32Array.from(far), [1, 1, 1, 1, 5, 2])
  locations.requiresGrad = true
  const y = ops.msDeformAttn(value, levels, locations, ops.full([1, 1, 1, 1, 5], 1, 'f32'))
  t.deepEqual([...y.toFloat32()], [0, 0])
  await backward([y], [ops.full(y.shape, 1, 'f32')])
  t.true((value.grad as Tensor).toFloat32().every((v) => v === 0))
  t.true((locations.grad as Tensor).toFloat32().every((v) => v === 0))
})

test('msDeformAttn: the same bits at any number of threads', async (t) => {
  const { normal } = generator(1)
  const make = (...shape: number[]) =>
    tensor(Float32Array.from({ length: shape.reduce((a, v) => a * v, 1) }, normal), shape)
  const value = make(2, 80, 3, 16)
  const locations = make(2, 40, 3, 2, 4, 2)
  const weights = make(2, 40, 3, 2, 4)
  const dy = make(2, 40, 48)
  const before = threads()
  const run = async (n: number) => {
    setThreads(n)
    for (const x of [value, locations, weights]) {
      x.requiresGrad = false
      x.requiresGrad = true
    }
    const y = ops.msDeformAttn(
      value,
      [
        [8, 8],
        [4, 4],
      ],
      locations,
      weights,
    )
    await backward([y], [dy])
    return [y, value.grad, locations.grad, weights.grad].map((x) => (x as Tensor).toFloat32())
  }
  try {
    const one = await run(1)
    for (const n of [2, 3, 7]) t.deepEqual(await run(n), one)
  } finally {
    setThreads(before)
  }
})

rejects('msDeformAttn', {
  'levels that do not cover the value': [
    'ERR_SHAPE',
    () => ops.msDeformAttn(zeros(1, 15, 1, 2), levels, zeros(1, 1, 1, 1, 1, 2), zeros(1, 1, 1, 1, 1)),
  ],
  'no levels': [
    'ERR_SHAPE',
    () => ops.msDeformAttn(zeros(1, 0, 1, 2), [], zeros(1, 1, 1, 0, 1, 2), zeros(1, 1, 1, 0, 1)),
  ],
  'an empty level': [
    'ERR_SHAPE',
    () => ops.msDeformAttn(zeros(1, 0, 1, 2), [[0, 4]], zeros(1, 1, 1, 1, 1, 2), zeros(1, 1, 1, 1, 1)),
  ],
  'locations of other queries': [
    'ERR_SHAPE',
    () => ops.msDeformAttn(zeros(1, 16, 1, 2), levels, zeros(1, 2, 1, 1, 1, 2), zeros(1, 1, 1, 1, 1)),
  ],
  'weights of other heads': [
    'ERR_SHAPE',
    () => ops.msDeformAttn(zeros(1, 16, 2, 2), levels, zeros(1, 1, 1, 1, 1, 2), zeros(1, 1, 1, 1, 1)),
  ],
})
