import { ops, type Tensor } from 'deem'
import { type F64, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

function reference({ x, w }: Record<string, F64>, eps: number): Float64Array {
  const { data } = x as F64
  const weight = (w as F64).data
  const n = weight.length
  const y = new Float64Array(data.length)
  for (let r = 0; r < data.length; r += n) {
    const row = data.subarray(r, r + n)
    const rstd = 1 / Math.sqrt(row.reduce((a, v) => a + v * v, 0) / n + eps)
    for (let i = 0; i < n; i++) y[r + i] = (row[i] as number) * rstd * (weight[i] as number)
  }
  return y
}

const rmsNormCase = (shape: number[], eps: number, scale = 1): OpCase => ({
  name: `[${shape}] eps ${eps} scale ${scale}`,
  inputs: { x: { shape, values: (_, normal) => scale * normal() }, w: { shape: [shape.at(-1) as number] } },
  run: ({ x, w }) => ops.rmsNorm(x as Tensor, w as Tensor, eps),
  reference: (v) => reference(v, eps),
})

opTest('rmsNorm', [
  rmsNormCase([2, 7, 33], 1e-5),
  rmsNormCase([1, 31], 1e-6),
  rmsNormCase([5, 1], 1e-5),
  rmsNormCase([70, 64], 1e-6),
  rmsNormCase([0, 8], 1e-5),
  rmsNormCase([3, 130], 1e-6, 1e4),
])

rejects('rmsNorm', {
  'a weight of another width': ['ERR_SHAPE', () => ops.rmsNorm(zeros(2, 4), zeros(5), 1e-5)],
  'a scalar': ['ERR_SHAPE', () => ops.rmsNorm(zeros(), zeros(1), 1e-5)],
  'an empty last axis': ['ERR_SHAPE', () => ops.rmsNorm(zeros(2, 0), zeros(0), 1e-5)],
  'a negative eps': ['ERR_VALUE', () => ops.rmsNorm(zeros(2, 4), zeros(4), -1)],
  integers: ['ERR_DTYPE', () => ops.rmsNorm(ops.cast(zeros(2, 4), 'i64'), zeros(4), 1e-5)],
})
