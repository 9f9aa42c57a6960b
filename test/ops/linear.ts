import test from 'ava'
import { type Activation, backward, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { activations } from '../_harness/activations.js'
import { type F64, generator, narrowLimits, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

/** y[r, o] = act(bias[o] + sum over i of x[r, i] weight[o, i]). */
function reference({ x, w, b }: Record<string, F64>, activation: Activation): Float64Array {
  const { data, shape } = w as F64
  const [out, width] = shape as [number, number]
  const rows = (x as F64).shape.slice(0, -1).reduce((a, v) => a * v, 1)
  const y = new Float64Array(rows * out)
  for (let r = 0; r < rows; r++)
    for (let o = 0; o < out; o++) {
      let sum = b ? (b.data[o] as number) : 0
      for (let i = 0; i < width; i++)
        sum += ((x as F64).data[r * width + i] as number) * (data[o * width + i] as number)
      y[r * out + o] = activations[activation](sum)
    }
  return y
}

interface Options extends Partial<OpCase> {
  bias?: boolean
  activation?: Activation
}

const linearCase = (
  shape: number[],
  out: number,
  { bias = true, activation = 'none', ...rest }: Options = {},
): OpCase => ({
  name: `[${shape}] to ${out}${bias ? '' : ', no bias'}${activation === 'none' ? '' : `, ${activation}`}`,
  inputs: { x: { shape }, w: { shape: [out, shape.at(-1) as number] }, ...(bias && { b: { shape: [out] } }) },
  run: ({ x, w, b }) => ops.linear(x as Tensor, w as Tensor, b ?? null, activation),
  reference: (v) => reference(v, activation),
  ...rest,
})

const narrow = narrowLimits
opTest('linear', [
  // One row, and widths around vectors and tiles.
  ...[1, 3, 17, 63].map((width) => linearCase([1, width], 5)),
  ...[1, 3, 17, 63].map((out) => linearCase([5, 7], out, { narrow })),
  linearCase([64, 32], 48, { probes: 10 }),
  linearCase([65, 33], 31, { probes: 10, narrow }),
  // Many rows, and columns and depths that fill no panel.
  linearCase([1030, 70], 90, { probes: 4, narrow }),
  linearCase([7], 3),
  linearCase([2, 3, 17], 4, { bias: false, narrow }),
  linearCase([2, 1, 3, 5], 6),
  // Nothing to compute, and nothing to add up: the bias alone.
  linearCase([0, 5], 3),
  linearCase([2, 0, 5], 3, { bias: false }),
  linearCase([4, 0], 3),
  linearCase([4, 0], 3, { bias: false }),
  linearCase([4, 5], 0),
  ...(['relu', 'gelu', 'gelu_tanh', 'silu', 'quick_gelu'] as const).map((activation) =>
    linearCase([4, 9], 17, { activation, narrow: { bf16: 2 * narrowLimits.bf16, f16: 2 * narrowLimits.f16 } }),
  ),
  linearCase([3, 2000], 2, { tolerance: { value: 1e-5 }, probes: 10 }),
  {
    name: 'columns of a wider x, rows of a taller weight',
    inputs: { x: { shape: [5, 12] }, w: { shape: [9, 7] } },
    run: ({ x, w }) => ops.linear(ops.slice(x as Tensor, 1, 3, 10), ops.slice(w as Tensor, 0, 2, 8), null, 'none'),
    reference: ({ x, w }) => {
      const cut = Float64Array.from(
        { length: 35 },
        (_, i) => (x as F64).data[Math.floor(i / 7) * 12 + 3 + (i % 7)] as number,
      )
      const rows = { data: (w as F64).data.slice(14, 56), shape: [6, 7] }
      return reference({ x: { data: cut, shape: [5, 7] }, w: rows }, 'none')
    },
  },
  {
    name: 'one row for all',
    inputs: { x: { shape: [1, 6] }, w: { shape: [4, 6] }, b: { shape: [1] } },
    run: ({ x, w, b }) =>
      ops.linear(ops.broadcastTo(x as Tensor, [3, 6]), w as Tensor, ops.broadcastTo(b as Tensor, [4]), 'none'),
    reference: ({ x, w, b }) => {
      const row = [...reference({ x: x as F64, w: w as F64 }, 'none')].map((v) => v + ((b as F64).data[0] as number))
      return [...row, ...row, ...row]
    },
  },
])

/** r + linear(x, w, b) * s. */
const addLinearCase = (shape: number[], out: number, given: { bias?: boolean; scale?: boolean }): OpCase => ({
  name: `[${shape}] to ${out}${given.bias ? ', bias' : ''}${given.scale ? ', scale' : ''}`,
  inputs: {
    r: { shape: [...shape.slice(0, -1), out] },
    x: { shape },
    w: { shape: [out, shape.at(-1) as number] },
    ...(given.bias && { b: { shape: [out] } }),
    ...(given.scale && { s: { shape: [out] } }),
  },
  run: ({ r, x, w, b, s }) => ops.addLinear(r as Tensor, x as Tensor, w as Tensor, b ?? null, s ?? null),
  reference: ({ r, s, ...v }) =>
    reference(v, 'none').map((y, i) => ((r as F64).data[i] as number) + y * ((s ? s.data[i % out] : 1) as number)),
  narrow: { bf16: 2 * narrowLimits.bf16, f16: 2 * narrowLimits.f16 },
})
opTest('addLinear', [
  addLinearCase([5, 7], 9, { bias: true, scale: true }),
  addLinearCase([2, 3, 17], 4, { scale: true }),
  addLinearCase([40, 33], 70, { bias: true }),
  addLinearCase([7], 3, {}),
  addLinearCase([0, 5], 3, { bias: true, scale: true }),
  addLinearCase([4, 0], 3, { bias: true, scale: true }),
])
rejects('addLinear', {
  'a residual of another shape': ['ERR_SHAPE', () => ops.addLinear(zeros(2, 3), zeros(2, 3), zeros(4, 3), null, null)],
  'one row for all': ['ERR_SHAPE', () => ops.addLinear(zeros(1, 4), zeros(2, 3), zeros(4, 3), null, null)],
  'a scale of another width': ['ERR_SHAPE', () => ops.addLinear(zeros(2, 4), zeros(2, 3), zeros(4, 3), null, zeros(3))],
  'a residual of another dtype': [
    'ERR_DTYPE',
    () => ops.addLinear(narrowZeros(2, 4), zeros(2, 3), zeros(4, 3), null, null),
  ],
  'a scale of another dtype': [
    'ERR_DTYPE',
    () => ops.addLinear(zeros(2, 4), zeros(2, 3), zeros(4, 3), null, narrowZeros(4)),
  ],
  'another width': ['ERR_SHAPE', () => ops.addLinear(zeros(2, 4), zeros(2, 3), zeros(4, 5), null, null)],
  'a scalar': ['ERR_SHAPE', () => ops.addLinear(tensor(1), tensor(1), zeros(4, 1), null, null)],
})

const narrowZeros = (...shape: number[]) => ops.cast(zeros(...shape), 'bf16')
const ids = (...shape: number[]) => tensor(new BigInt64Array(shape.reduce((a, v) => a * v, 1)), shape)
rejects('linear', {
  'another width': ['ERR_SHAPE', () => ops.linear(zeros(2, 3), zeros(4, 5), null, 'none')],
  'a scalar': ['ERR_SHAPE', () => ops.linear(tensor(1), zeros(4, 1), null, 'none')],
  'a weight of three axes': ['ERR_SHAPE', () => ops.linear(zeros(2, 3), zeros(1, 4, 3), null, 'none')],
  'a weight of one axis': ['ERR_SHAPE', () => ops.linear(zeros(2, 3), zeros(3), null, 'none')],
  'a bias of another width': ['ERR_SHAPE', () => ops.linear(zeros(2, 3), zeros(4, 3), zeros(3), 'none')],
  'a bias with two axes': ['ERR_SHAPE', () => ops.linear(zeros(2, 3), zeros(4, 3), zeros(1, 4), 'none')],
  'mixed dtypes': ['ERR_DTYPE', () => ops.linear(zeros(2, 3), narrowZeros(4, 3), null, 'none')],
  'a bias of another dtype': ['ERR_DTYPE', () => ops.linear(zeros(2, 3), zeros(4, 3), narrowZeros(4), 'none')],
  integers: ['ERR_DTYPE', () => ops.linear(ids(2, 3), ids(4, 3), null, 'none')],
  'an unknown activation': ['ERR_CONFIG', () => ops.linear(zeros(2, 3), zeros(4, 3), null, 'mish' as Activation)],
  'no activation': ['ERR_VALUE', () => ops.linear(zeros(2, 3), zeros(4, 3), null, undefined as unknown as Activation)],
  'no weight': ['ERR_DTYPE', () => ops.linear(zeros(2, 3), null as unknown as Tensor, null, 'none')],
})

const normals = (shape: number[], seed: number) => {
  const { normal } = generator(seed)
  return tensor(Float32Array.from({ length: shape.reduce((a, v) => a * v, 1) }, normal), shape)
}
const parts = () => [normals([9, 40], 1), normals([33, 40], 2), normals([33], 3)] as [Tensor, Tensor, Tensor]

test('linear: gradients only where wanted', async (t) => {
  const run = async (wanted: number[]) => {
    const [x, w, b] = parts()
    for (const i of wanted) ([x, w, b][i] as Tensor).requiresGrad = true
    const y = ops.linear(x, w, b, 'silu')
    await backward([y], [normals(y.shape, 4)])
    return [x, w, b].map((p) => p.grad?.toFloat32())
  }
  const all = await run([0, 1, 2])
  for (const i of [0, 1, 2])
    t.deepEqual(
      await run([i]),
      [0, 1, 2].map((k) => (k === i ? all[i] : undefined)),
    )
})

test.serial('linear: the same bits with any number of threads', (t) => {
  const before = threads()
  const x = normals([70, 300], 1)
  const w = normals([90, 300], 2)
  try {
    const [first, ...others] = [1, 2, 3].map((count) => {
      setThreads(count)
      return ops.linear(x, w, null, 'none').toFloat32()
    })
    for (const other of others) t.deepEqual(other, first)
  } finally {
    setThreads(before)
  }
})

test.serial('addLinear: the bits of its operations one after the other', (t) => {
  const before = threads()
  const bf16 = (shape: number[], seed: number, size = 1) => ops.cast(ops.mulScalar(normals(shape, seed), size), 'bf16')
  // Fewer rows than columns, and more; little depth; panels and blocks, one of them or several, that are not full.
  const shapes = [
    [64, 300, 1024],
    [60, 20, 1000],
    [70, 520, 300],
    [37, 600, 75],
    [300, 520, 130],
    [40, 513, 900],
    [900, 40, 100],
    [9, 2100, 77],
  ] as const
  try {
    for (const count of [1, 2])
      for (const [rows, depth, out] of shapes) {
        setThreads(count)
        const [r, x, w, b] = [bf16([rows, out], 1), bf16([rows, depth], 2), bf16([out, depth], 3), bf16([out], 4)]
        for (const s of [null, bf16([out], 5), bf16([out], 5, 1e-40)])
          for (const to of [r, ops.mulScalar(r, 0)]) {
            const y = ops.linear(x, w, b, 'none')
            t.deepEqual(
              ops.addLinear(to, x, w, b, s).toFloat32(),
              ops.add(to, s ? ops.mul(y, s) : y).toFloat32(),
              `${rows} x ${depth} to ${out}, ${count} threads`,
            )
          }
      }
  } finally {
    setThreads(before)
  }
})
