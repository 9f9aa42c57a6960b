import { ops, type Tensor, tensor } from 'deem'
import { type F64, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

function reference(x: F64, log: boolean): Float64Array {
  const n = x.shape.at(-1) as number
  const y = new Float64Array(x.data.length)
  for (let r = 0; r < y.length; r += n) {
    const row = x.data.subarray(r, r + n)
    const top = row.reduce((a, v) => Math.max(a, v))
    const total = row.reduce((a, v) => a + Math.exp(v - top), 0)
    for (let i = 0; i < n; i++) {
      const v = (row[i] as number) - top - Math.log(total)
      y[r + i] = log ? v : Math.exp(v)
    }
  }
  return y
}

const softmaxCase = (log: boolean, shape: number[], spread = 1, shift = 0): OpCase => ({
  name: `[${shape}] spread ${spread} shift ${shift}`,
  inputs: { x: { shape, values: (_, normal) => shift + spread * normal() } },
  run: ({ x }) => (log ? ops.logSoftmax(x as Tensor) : ops.softmax(x as Tensor)),
  reference: ({ x }) => reference(x as F64, log),
})

for (const log of [false, true]) {
  const name = log ? 'logSoftmax' : 'softmax'
  opTest(name, [
    softmaxCase(log, [3, 1]),
    softmaxCase(log, [7]),
    softmaxCase(log, [2, 3, 31]),
    softmaxCase(log, [4, 33], 20),
    softmaxCase(log, [2, 65], 1, 1000),
    softmaxCase(log, [2, 1000], 3),
    softmaxCase(log, [0, 8]),
  ])
  const op = log ? ops.logSoftmax : ops.softmax
  rejects(name, {
    'a scalar': ['ERR_SHAPE', () => op(zeros())],
    'an empty last axis': ['ERR_SHAPE', () => op(zeros(3, 0))],
    'whole numbers': ['ERR_DTYPE', () => op(tensor(new Int32Array(4), [4]))],
  })
}
