import { ops } from 'deem'
import { type F64, narrowLimits, opTest, rejects, zeros } from '../_harness/op.js'

function reference({ x, w, b }: Record<string, F64>, eps: number): Float64Array {
  const { data } = x as F64
  const n = (w as F64).data.length
  const y = new Float64Array(data.length)
  for (let r = 0; r < data.length; r += n) {
    const row = data.subarray(r, r + n)
    const mean = row.reduce((a, v) => a + v, 0) / n
    const variance = row.reduce((a, v) => a + (v - mean) ** 2, 0) / n
    for (let i = 0; i < n; i++)
      y[r + i] =
        (((row[i] as number) - mean) / Math.sqrt(variance + eps)) * ((w as F64).data[i] as number) +
        ((b as F64).data[i] as number)
  }
  return y
}

const layerNormCase = (shape: number[], eps: number, values?: (i: number, normal: () => number) => number) => ({
  name: `[${shape}] eps ${eps}${values ? ', mean far from 0' : ''}`,
  inputs: {
    x: values ? { shape, values } : { shape },
    w: { shape: [shape.at(-1) as number] },
    b: { shape: [shape.at(-1) as number] },
  },
  run: ({ x, w, b }: Record<string, import('deem').Tensor>) => ops.layerNorm(x as never, w as never, b as never, eps),
  reference: (v: Record<string, F64>) => reference(v, eps),
  ...(values
    ? { tolerance: { value: 2e-4, grad: 1e-3 } }
    : { narrow: { bf16: narrowLimits.bf16, f16: narrowLimits.f16 } }),
})

opTest('layerNorm', [
  layerNormCase([2, 7, 33], 1e-5),
  layerNormCase([1, 31], 1e-6),
  layerNormCase([5, 1], 1e-5),
  layerNormCase([3, 64], 1e-12),
  // Registers of two lengths, full and in part.
  ...[2, 32, 47, 96, 127, 160, 163].map((width) => layerNormCase([3, width], 1e-5)),
  layerNormCase([0, 8], 1e-5),
  // x = 1000 + noise: in f32 the input itself carries 6e-5 of rounding, which rstd of about 1 passes on.
  layerNormCase([2, 130], 1e-5, (_, normal) => 1000 + normal()),
])

rejects('layerNorm', {
  'a weight of another width': ['ERR_SHAPE', () => ops.layerNorm(zeros(2, 4), zeros(5), zeros(5), 1e-5)],
  'a bias of another width': ['ERR_SHAPE', () => ops.layerNorm(zeros(2, 4), zeros(4), zeros(3), 1e-5)],
  'a scalar': ['ERR_SHAPE', () => ops.layerNorm(zeros(), zeros(1), zeros(1), 1e-5)],
  'a negative eps': ['ERR_VALUE', () => ops.layerNorm(zeros(2, 4), zeros(4), zeros(4), -1)],
  'what is no tensor': ['ERR_DTYPE', () => ops.layerNorm({} as never, zeros(4), zeros(4), 1e-5)],
})
