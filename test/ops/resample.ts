import test from 'ava'
import { ops, type Tensor, tensor } from 'deem'
import { type F64, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

/** Keys' cubic kernel with A = -0.75. */
function cubic(x: number): number {
  const t = Math.abs(x)
  if (t <= 1) return (1.25 * t - 2.25) * t * t + 1
  return t < 2 ? -0.75 * (((t - 5) * t + 8) * t - 4) : 0
}
const linear = (x: number) => Math.max(0, 1 - Math.abs(x))

/** x [n, height, width, c] filtered on both axes, edges clamped. */
function filtered(
  x: F64,
  [height, width]: [number, number],
  kernel: (x: number) => number,
  reach: number,
): Float64Array {
  const [n, h, w, c] = x.shape as [number, number, number, number]
  const y = new Float64Array(n * height * width * c)
  const taps = (i: number, from: number, to: number) => {
    const s = ((i + 0.5) * from) / to - 0.5
    const clamped = kernel === linear ? Math.max(0, s) : s
    const first = Math.floor(clamped)
    return Array.from({ length: 2 * reach }, (_, k) => first - reach + 1 + k).map(
      (j) => [Math.min(Math.max(j, 0), from - 1), kernel(clamped - j)] as const,
    )
  }
  for (let b = 0; b < n; b++)
    for (let i = 0; i < height; i++)
      for (let j = 0; j < width; j++)
        for (const [row, wy] of taps(i, h, height))
          for (const [column, wx] of taps(j, w, width))
            for (let k = 0; k < c; k++)
              (y[((b * height + i) * width + j) * c + k] as number) +=
                wy * wx * (x.data[((b * h + row) * w + column) * c + k] as number)
  return y
}

const gridCase = (side: number, cls: number, [height, width]: [number, number], channels: number): OpCase => ({
  name: `${side} x ${side}${cls ? ' and cls' : ''} to ${height} x ${width}`,
  inputs: { table: { shape: [side * side + cls, channels] } },
  run: ({ table }) => ops.resampleGrid(table as Tensor, height, width),
  reference: ({ table }) => {
    const { data } = table as F64
    const grid = filtered(
      { data: data.subarray(cls * channels), shape: [1, side, side, channels] },
      [height, width],
      cubic,
      2,
    )
    return side === height && side === width ? data : [...data.subarray(0, cls * channels), ...grid]
  },
})

const tableCase = (side: number, cls: number, target: number, channels: number): OpCase => ({
  ...gridCase(side, cls, [target, target], channels),
  name: `${side} x ${side}${cls ? ' and cls' : ''} to ${target}`,
  run: ({ table }) => ops.resampleTable(table as Tensor, target * target + cls),
})

opTest('resampleTable', [
  tableCase(4, 1, 7, 6),
  tableCase(4, 1, 2, 6),
  tableCase(7, 0, 13, 5),
  tableCase(8, 0, 3, 1),
  tableCase(1, 1, 3, 2),
  tableCase(2, 0, 1, 3),
])

opTest('resampleGrid', [
  gridCase(4, 1, [7, 3], 6),
  gridCase(4, 0, [2, 8], 3), // as many places as before, in another shape
  gridCase(7, 0, [1, 13], 5),
  gridCase(1, 0, [2, 3], 2),
])

test('resampleTable: a table of the right size is returned as it is', (t) => {
  const table = tensor(
    Float32Array.from({ length: 52 }, (_, i) => i),
    [26, 2],
  )
  t.deepEqual(ops.resampleTable(table, 26).toFloat32(), table.toFloat32())
})

const resizeCase = (
  kind: 'resizeBilinear' | 'resizeNearest',
  shape: number[],
  height: number,
  width: number,
): OpCase => ({
  name: `[${shape}] to ${height} x ${width}`,
  inputs: { x: { shape, grad: kind === 'resizeNearest' } },
  run: ({ x }) => ops[kind](x as Tensor, height, width),
  reference: ({ x }) => {
    if (kind === 'resizeBilinear') return filtered(x as F64, [height, width], linear, 1)
    const [n, h, w, c] = shape as [number, number, number, number]
    const y: number[] = []
    for (let b = 0; b < n; b++)
      for (let i = 0; i < height; i++)
        for (let j = 0; j < width; j++) {
          const row = Math.floor((i * h) / height)
          const at = ((b * h + row) * w + Math.floor((j * w) / width)) * c
          y.push(...(x as F64).data.subarray(at, at + c))
        }
    return y
  },
})

opTest('resizeBilinear', [
  resizeCase('resizeBilinear', [2, 16, 16, 1], 4, 4),
  resizeCase('resizeBilinear', [1, 13, 7, 3], 6, 20),
  resizeCase('resizeBilinear', [3, 8, 8, 1], 8, 8),
  resizeCase('resizeBilinear', [1, 1, 1, 2], 3, 5),
  resizeCase('resizeBilinear', [0, 4, 4, 1], 2, 2),
])

opTest('resizeNearest', [
  resizeCase('resizeNearest', [2, 7, 5, 3], 14, 10),
  resizeCase('resizeNearest', [1, 4, 4, 65], 7, 7),
  resizeCase('resizeNearest', [1, 9, 8, 2], 4, 3),
  resizeCase('resizeNearest', [1, 1, 1, 4], 2, 2),
  resizeCase('resizeNearest', [0, 2, 2, 4], 4, 4),
])

const tracked = () => {
  const x = zeros(1, 4, 4, 1)
  x.requiresGrad = true
  return x
}

rejects('resample', {
  'a grid without a side': ['ERR_VALUE', () => ops.resampleGrid(zeros(16, 3), 0, 4)],
  'a grid beyond counting': ['ERR_VALUE', () => ops.resampleGrid(zeros(16, 3), 4, 2 ** 25)],
  'a grid of no square': ['ERR_SHAPE', () => ops.resampleGrid(zeros(6, 3), 2, 2)],
  'a table that is no square': ['ERR_SHAPE', () => ops.resampleTable(zeros(6, 3), 9)],
  'an empty table': ['ERR_SHAPE', () => ops.resampleTable(zeros(0, 3), 9)],
  'a target without the cls row': ['ERR_SHAPE', () => ops.resampleTable(zeros(17, 3), 49)],
  'a target with a cls row the table lacks': ['ERR_SHAPE', () => ops.resampleTable(zeros(16, 3), 50)],
  'a target of no positions': ['ERR_SHAPE', () => ops.resampleTable(zeros(17, 3), 1)],
  'a negative target': ['ERR_SHAPE', () => ops.resampleTable(zeros(16, 3), -4)],
  'a bilinear gradient': ['ERR_NO_GRADIENT', () => ops.resizeBilinear(tracked(), 2, 2)],
  'a height of 0': ['ERR_VALUE', () => ops.resizeNearest(zeros(1, 4, 4, 1), 0, 2)],
  'a map without positions': ['ERR_SHAPE', () => ops.resizeNearest(zeros(1, 0, 4, 1), 2, 2)],
  'a matrix': ['ERR_SHAPE', () => ops.resizeBilinear(zeros(4, 4), 2, 2)],
})
