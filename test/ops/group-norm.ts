import { ops, type Tensor } from 'deem'
import { type F64, type InputSpec, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

function reference({ x, w, b }: Record<string, F64>, groups: number, eps: number, silu: boolean): Float64Array {
  const { data, shape } = x as F64
  const n = shape[0] as number
  const channels = shape.at(-1) as number
  const positions = shape.slice(1, -1).reduce((a, v) => a * v, 1)
  const wide = channels / groups
  const y = new Float64Array(data.length)
  for (let i = 0; i < n; i++)
    for (let g = 0; g < groups; g++) {
      const at: number[] = []
      for (let p = 0; p < positions; p++)
        for (let c = 0; c < wide; c++) at.push((i * positions + p) * channels + g * wide + c)
      const mean = at.reduce((a, k) => a + (data[k] as number), 0) / at.length
      const variance = at.reduce((a, k) => a + ((data[k] as number) - mean) ** 2, 0) / at.length
      for (const k of at) {
        const xhat = ((data[k] as number) - mean) / Math.sqrt(variance + eps)
        const z = xhat * ((w as F64).data[k % channels] as number) + ((b as F64).data[k % channels] as number)
        y[k] = silu ? z / (1 + Math.exp(-z)) : z
      }
    }
  return y
}

const groupNormCase = (
  shape: number[],
  groups: number,
  silu: boolean,
  more: Partial<OpCase> & Pick<InputSpec, 'values'> = {},
): OpCase => {
  const { values, ...rest } = more
  const channels = shape.at(-1) as number
  return {
    name: `[${shape}] in ${groups}${silu ? ', silu' : ''}${values ? ', mean far from 0' : ''}`,
    inputs: { x: values ? { shape, values } : { shape }, w: { shape: [channels] }, b: { shape: [channels] } },
    run: ({ x, w, b }) => ops.groupNorm(x as Tensor, w as Tensor, b as Tensor, groups, 1e-5, silu),
    reference: (v) => reference(v, groups, 1e-5, silu),
    ...rest,
  }
}

opTest('groupNorm', [
  groupNormCase([2, 3, 5, 8], 2, false),
  groupNormCase([2, 3, 5, 8], 2, true),
  groupNormCase([1, 7, 32], 32, true),
  groupNormCase([1, 1, 1, 4], 1, false),
  groupNormCase([3, 5, 12], 4, true),
  groupNormCase([2, 11, 63], 7, true),
  groupNormCase([1, 9, 130], 13, false),
  groupNormCase([0, 2, 2, 4], 2, true),
  groupNormCase([1, 0, 2, 4], 2, true),
  // Several blocks of positions: 16384 numbers make one.
  groupNormCase([1, 70, 65, 4], 2, true, { probes: 6 }),
  groupNormCase([1, 40, 10, 96], 32, false, { probes: 6 }),
  // x = 1000 + noise: in f32 the input itself carries 6e-5 of rounding, which rstd of about 1 passes on.
  groupNormCase([2, 4, 4, 6], 3, true, {
    values: (_, normal) => 1000 + normal(),
    tolerance: { value: 2e-4, grad: 1e-3 },
  }),
])

rejects('groupNorm', {
  'groups that do not divide the channels': [
    'ERR_VALUE',
    () => ops.groupNorm(zeros(1, 2, 2, 6), zeros(6), zeros(6), 4, 1e-5, false),
  ],
  'no groups': ['ERR_VALUE', () => ops.groupNorm(zeros(1, 2, 2, 6), zeros(6), zeros(6), 0, 1e-5, false)],
  'a matrix': ['ERR_SHAPE', () => ops.groupNorm(zeros(2, 6), zeros(6), zeros(6), 2, 1e-5, false)],
  'no channels': ['ERR_SHAPE', () => ops.groupNorm(zeros(1, 2, 2, 0), zeros(0), zeros(0), 1, 1e-5, false)],
  'a weight of another width': [
    'ERR_SHAPE',
    () => ops.groupNorm(zeros(1, 2, 2, 6), zeros(5), zeros(6), 2, 1e-5, false),
  ],
  'a bias of another width': ['ERR_SHAPE', () => ops.groupNorm(zeros(1, 2, 2, 6), zeros(6), zeros(5), 2, 1e-5, false)],
  'a negative eps': ['ERR_VALUE', () => ops.groupNorm(zeros(1, 2, 2, 6), zeros(6), zeros(6), 2, -1, false)],
})
