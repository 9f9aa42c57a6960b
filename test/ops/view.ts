import test from 'ava'
import { backward, type DType, memory, ops, type Tensor, tensor } from 'deem'
import { type F64, generator, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

const count = (shape: number[]) => shape.reduce((a, v) => a * v, 1)

/** What a view shows: for each of its elements, which element of the source it is. */
interface Picture {
  shape: number[]
  at: number[]
}
const whole = (shape: number[]): Picture => ({ shape, at: Array.from({ length: count(shape) }, (_, i) => i) })

/** The elements of `p` at the coordinates `from` gives for each coordinate of the new shape. */
function picked(p: Picture, shape: number[], from: (index: number[]) => number[]): Picture {
  const at = Array.from({ length: count(shape) }, (_, i) => {
    const index: number[] = []
    for (let d = shape.length - 1, rest = i; d >= 0; d--) {
      index[d] = rest % (shape[d] as number)
      rest = Math.floor(rest / (shape[d] as number))
    }
    return p.at[from(index).reduce((a, v, d) => a * (p.shape[d] as number) + v, 0)] as number
  })
  return { shape, at }
}
const permuted = (p: Picture, axes: number[]) =>
  picked(
    p,
    axes.map((a) => p.shape[a] as number),
    (index) => p.shape.map((_, d) => index[axes.indexOf(d)] as number),
  )
const sliced = (p: Picture, axis: number, begin: number, end: number) =>
  picked(
    p,
    p.shape.map((v, d) => (d === axis ? end - begin : v)),
    (index) => index.map((v, d) => (d === axis ? v + begin : v)),
  )
const broadcast = (p: Picture, shape: number[]) =>
  picked(p, shape, (index) =>
    p.shape.map((v, d) => (v === 1 ? 0 : (index[d + shape.length - p.shape.length] as number))),
  )

const viewCase = (
  name: string,
  shape: number[],
  run: (x: Tensor) => Tensor,
  picture: (p: Picture) => Picture,
): OpCase => ({
  name: `${name} of [${shape}]`,
  inputs: { x: { shape } },
  run: ({ x }) => run(x as Tensor),
  reference: ({ x }) => picture(whole(shape)).at.map((i) => (x as F64).data[i] as number),
})
const reshapeCase = (shape: number[], to: number[]) =>
  viewCase(
    `to [${to}]`,
    shape,
    (x) => ops.reshape(x, to),
    (p) => p,
  )
const permuteCase = (shape: number[], axes: number[]) =>
  viewCase(
    `by [${axes}]`,
    shape,
    (x) => ops.permute(x, axes),
    (p) =>
      permuted(
        p,
        axes.map((a) => (a + shape.length) % shape.length),
      ),
  )
const sliceCase = (shape: number[], axis: number, begin: number, end: number) =>
  viewCase(
    `axis ${axis} from ${begin} to ${end}`,
    shape,
    (x) => ops.slice(x, axis, begin, end),
    (p) => {
      const d = (axis + shape.length) % shape.length
      const n = shape[d] as number
      return sliced(p, d, begin < 0 ? begin + n : begin, end < 0 ? end + n : end)
    },
  )
const broadcastCase = (shape: number[], to: number[]) =>
  viewCase(
    `to [${to}]`,
    shape,
    (x) => ops.broadcastTo(x, to),
    (p) => broadcast(p, to),
  )

opTest('reshape', [
  reshapeCase([3, 4], [4, 3]),
  reshapeCase([3, 4], [12]),
  reshapeCase([12], [2, 3, 2]),
  reshapeCase([2, 3, 4], [6, -1]),
  reshapeCase([2, 3, 4], [-1]),
  reshapeCase([1], []),
  reshapeCase([], [1, 1]),
  reshapeCase([0, 3], [5, 0]),
  reshapeCase([0, 3], [-1, 3]),
  reshapeCase([2, 3, 4], [2, 1, 3, 4, 1]),
])
opTest('permute', [
  permuteCase([3, 4], [1, 0]),
  permuteCase([2, 3, 4], [2, 0, 1]),
  permuteCase([2, 3, 4], [0, 2, 1]),
  permuteCase([2, 3, 4], [-1, -3, -2]),
  permuteCase([2, 1, 3, 2], [3, 1, 0, 2]),
  permuteCase([], []),
  permuteCase([0, 3], [1, 0]),
  permuteCase([67, 130], [1, 0]),
])
opTest('slice', [
  sliceCase([5, 3], 0, 1, 4),
  sliceCase([5, 3], 1, 0, 2),
  sliceCase([5, 3], -1, -2, -1),
  sliceCase([5, 3], 0, 0, 5),
  sliceCase([5, 3], 0, 2, 2),
  sliceCase([2, 7, 3], 1, 3, 7),
])
opTest('broadcastTo', [
  broadcastCase([], [3]),
  broadcastCase([1, 3], [4, 3]),
  broadcastCase([3], [2, 4, 3]),
  broadcastCase([2, 1, 3, 1], [2, 4, 3, 5]),
  broadcastCase([3, 4], [3, 4]),
  broadcastCase([1, 3], [0, 3]),
])
const headsCase = (shape: number[]) => {
  const axes = shape.length === 3 ? [1, 0, 2] : [0, 2, 1, 3]
  return viewCase(
    'heads',
    shape,
    (x) => ops.contiguous(ops.permute(x, axes)),
    (p) => permuted(p, axes),
  )
}
opTest('contiguous', [
  viewCase(
    'transposed',
    [3, 65],
    (x) => ops.contiguous(ops.permute(x, [1, 0])),
    (p) => permuted(p, [1, 0]),
  ),
  viewCase('nothing to do', [3, 4], ops.contiguous, (p) => p),
  // Runs of whole cache lines: in tiles of 64 rows, in one tile, without one, and in rows a power of two apart.
  headsCase([2, 192, 3, 32]),
  headsCase([64, 5, 32]),
  headsCase([1, 67, 3, 32]),
  headsCase([1, 12, 16, 64]),
])

// Results of 16 MB and more are written past the caches; those of the slice do not begin where a cache line does.
for (const dtype of ['f32', 'bf16'] as const)
  test(`contiguous: heads too large for a cache, ${dtype}`, (t) => {
    const [rows, heads, size] = [dtype === 'f32' ? 1000 : 2000, 66, 64]
    const bits = Float32Array.from({ length: rows * heads * size + 8 }, (_, i) => (i * 7919) % 251)
    const from = ops.cast(tensor(bits), dtype)
    for (const begin of [0, 8]) {
      const x = ops.reshape(ops.slice(from, 0, begin, begin + rows * heads * size), [rows, heads, size])
      const y = ops.contiguous(ops.permute(x, [1, 0, 2])).toFloat32()
      const back = ops.contiguous(ops.permute(ops.reshape(x, [heads, rows, size]), [1, 0, 2])).toFloat32()
      let wrong = 0
      for (let h = 0; h < heads; h++)
        for (let r = 0; r < rows; r++)
          for (let i = 0; i < size; i++) {
            const [at, other] = [(r * heads + h) * size + i, (h * rows + r) * size + i]
            if (y[other] !== bits[begin + at] || back[at] !== bits[begin + other]) wrong++
          }
      t.is(wrong, 0, `from number ${begin} on`)
    }
  })

const catCase = (shapes: number[][], axis: number): OpCase => {
  const d = (axis + (shapes[0] as number[]).length) % (shapes[0] as number[]).length
  return {
    name: `${shapes.length > 4 ? `${shapes.length} of ` : ''}${shapes.slice(0, 4).map((s) => `[${s}]`)} on axis ${axis}`,
    inputs: Object.fromEntries(shapes.map((shape, i) => [`x${i}`, { shape }])),
    run: (t) =>
      ops.cat(
        shapes.map((_, i) => t[`x${i}`] as Tensor),
        axis,
      ),
    reference: (x) => {
      const outer = count((shapes[0] as number[]).slice(0, d))
      return Array.from({ length: outer }, (_, o) =>
        shapes.flatMap((shape, i) => {
          const row = count(shape.slice(d))
          return [...(x[`x${i}`] as F64).data.subarray(o * row, (o + 1) * row)]
        }),
      ).flat()
    },
    probes: 5,
  }
}
opTest('cat', [
  catCase(
    [
      [2, 3],
      [4, 3],
    ],
    0,
  ),
  catCase(
    [
      [2, 3],
      [2, 1],
    ],
    1,
  ),
  catCase(
    [
      [2, 3],
      [2, 3],
      [2, 3],
    ],
    -1,
  ),
  catCase(
    [
      [2, 3, 2],
      [2, 5, 2],
    ],
    1,
  ),
  catCase([[3]], 0),
  catCase(
    [
      [0, 3],
      [2, 3],
      [0, 3],
    ],
    0,
  ),
  catCase(
    [
      [2, 0],
      [2, 3],
    ],
    1,
  ),
  // More parts than one record on the tape takes.
  catCase(
    Array.from({ length: 150 }, (_, i) => [1 + (i % 2), 2]),
    0,
  ),
])
const stackCase = (shape: number[], parts: number, axis: number): OpCase => {
  const { run, reference, inputs, ...rest } = catCase(
    Array.from({ length: parts }, () => [...shape.slice(0, axis), 1, ...shape.slice(axis)]),
    axis,
  )
  return {
    ...rest,
    name: `${parts} of [${shape}] on axis ${axis}`,
    inputs: Object.fromEntries(Object.keys(inputs).map((name) => [name, { shape }])),
    run: (t) => ops.stack(Object.values(t), axis),
    reference,
  }
}
opTest('stack', [
  stackCase([], 3, 0),
  stackCase([3], 2, 0),
  stackCase([3], 2, 1),
  stackCase([2, 3], 4, 1),
  stackCase([0, 2], 2, 0),
])

const padCase = (shape: number[], rows: number): OpCase => ({
  name: `[${shape}] by ${rows}`,
  inputs: { x: { shape } },
  run: ({ x }) => ops.padRows(x as Tensor, rows),
  reference: ({ x }) => [...(x as F64).data, ...Array(rows * count(shape.slice(1))).fill(0)],
})
opTest('padRows', [padCase([3, 4], 2), padCase([5], 1), padCase([3, 4], 0), padCase([0, 4], 2), padCase([2, 3, 5], 4)])

const gatherCase = (shape: number[], index: number[], indexShape = [index.length]): OpCase => ({
  name: `[${shape}] by [${index}] as [${indexShape}]`,
  inputs: { x: { shape }, index: { shape: indexShape, dtype: 'i64', values: (i) => index[i] as number } },
  run: ({ x, index }) => ops.gatherRows(x as Tensor, index as Tensor),
  reference: ({ x }) => {
    const row = count(shape.slice(1))
    return index.flatMap((i) => (i < 0 ? Array(row).fill(0) : [...(x as F64).data.subarray(i * row, (i + 1) * row)]))
  },
})
opTest('gatherRows', [
  gatherCase([4, 3], [2, 0, 3]),
  gatherCase([4, 3], [1, 1, -1, 1]),
  gatherCase([4, 3], [-1, -1]),
  gatherCase([4], [3, 0, 0]),
  gatherCase([3, 2, 5], [2, 1, 0, 2], [2, 2]),
  gatherCase([3, 17], [1], []),
  gatherCase([3, 4], []),
  gatherCase([3, 0], [1, 2]),
  gatherCase([0, 4], [-1]),
])

// ---- chains of views ------------------------------------------------------------------------------------------------

/** One random view of `x`, and the same of its picture. */
function step(x: Tensor, p: Picture, uniform: () => number): [Tensor, Picture] {
  const below = (n: number) => Math.floor(uniform() * n)
  const n = p.shape.length
  switch (below(4)) {
    case 0: {
      const axes = p.shape.map((_, i) => i).sort(() => uniform() - 0.5)
      return [ops.permute(x, axes), permuted(p, axes)]
    }
    case 1: {
      if (n === 0) return [x, p]
      const axis = below(n)
      const size = p.shape[axis] as number
      const begin = below(size)
      const end = begin + 1 + below(size - begin)
      return [ops.slice(x, axis, begin, end), sliced(p, axis, begin, end)]
    }
    case 2: {
      const shape = p.shape.map((v) => (v === 1 && uniform() < 0.5 ? 1 + below(3) : v))
      if (n < 5 && uniform() < 0.5) shape.unshift(1 + below(3))
      if (count(shape) > 400) return [x, p]
      return [ops.broadcastTo(x, shape), broadcast(p, shape)]
    }
    default: {
      // Two neighbouring axes as one, or one as two.
      const shape = [...p.shape]
      if (n >= 2 && uniform() < 0.5) {
        const axis = below(n - 1)
        shape.splice(axis, 2, (shape[axis] as number) * (shape[axis + 1] as number))
      } else if (n >= 1 && n < 6) {
        const axis = below(n)
        const size = shape[axis] as number
        const factor = [2, 3, 5].find((f) => size % f === 0) ?? 1
        shape.splice(axis, 1, factor, size / factor)
      }
      return [ops.reshape(x, shape), { shape, at: p.at }]
    }
  }
}

test('chains of views show what they should, to readers, kernels and gradients', async (t) => {
  for (let seed = 0; seed < 150; seed++) {
    const { uniform, normal } = generator(seed)
    const start = [[2, 3, 4], [6, 5], [12], [2, 1, 3, 2]][seed % 4] as number[]
    const leaf = tensor(Float32Array.from({ length: count(start) }, normal), start)
    leaf.requiresGrad = true
    let x = leaf
    let p = whole(start)
    for (let k = 0; k < 6; k++) [x, p] = step(x, p, uniform)
    const source = leaf.toFloat32()
    const want = p.at.map((i) => source[i] as number)
    t.deepEqual(x.shape, p.shape, `seed ${seed}`)
    t.deepEqual([...x.toFloat32()], want, `seed ${seed}: read`)
    t.deepEqual([...ops.contiguous(x).toFloat32()], want, `seed ${seed}: contiguous`)
    t.deepEqual(
      [...ops.neg(x).toFloat32()],
      want.map((v) => -v),
      `seed ${seed}: neg`,
    )
    // Another view of the same shape, so that operands have different strides.
    const other = ops.contiguous(x.detach())
    t.deepEqual(
      [...ops.add(x, other).toFloat32()],
      want.map((v) => Math.fround(2 * v)),
      `seed ${seed}: add`,
    )
    t.deepEqual(
      [...ops.cast(x.detach(), 'i64').toFloat32()],
      want.map((v) => Math.trunc(v) + 0),
      `seed ${seed}: cast`,
    )
    const dy = Float32Array.from(want, () => Math.round(4 * normal()) + 0)
    await backward([x], [tensor(dy, p.shape)])
    const grad = new Float32Array(source.length)
    for (const [i, at] of p.at.entries()) grad[at] = (grad[at] as number) + (dy[i] as number)
    t.deepEqual([...(leaf.grad?.toFloat32() ?? [])], [...grad], `seed ${seed}: gradient`)
  }
})

test.serial('views take no memory', (t) => {
  const x = ops.full([1000, 100], 1, 'f32')
  const before = memory().current
  const views = [
    ops.permute(x, [1, 0]),
    ops.slice(x, 0, 10, 900),
    ops.reshape(x, [100, 10, 100]),
    ops.broadcastTo(x, [50, 1000, 100]),
    ops.reshape(ops.slice(x, 0, 10, 900), [89, 10, 100]),
    ops.contiguous(x),
    ops.slice(x, 0, 0, 1000),
    ops.padRows(x, 0),
    ops.cat([x], 0),
    x.detach(),
  ]
  t.is(memory().current, before)
  for (const v of views) v.dispose()
  t.is(ops.sum(x, [], false).item(), 100000)
})

test('what moves elements does so in every dtype', (t) => {
  for (const dtype of ['f32', 'bf16', 'f16', 'i64', 'i32', 'u8'] as DType[]) {
    const x = ops.cast(
      tensor([
        [1, 2, 3],
        [4, 5, 6],
      ]),
      dtype,
    )
    const check = (y: Tensor, want: number[], name: string) => {
      t.is(y.dtype, dtype, `${name} of ${dtype}`)
      t.deepEqual([...y.toFloat32()], want, `${name} of ${dtype}`)
    }
    check(ops.contiguous(ops.permute(x, [1, 0])), [1, 4, 2, 5, 3, 6], 'contiguous')
    check(ops.cat([x, ops.slice(x, 0, 1, 2)], 0), [1, 2, 3, 4, 5, 6, 4, 5, 6], 'cat')
    check(ops.stack([x, x], 1), [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6], 'stack')
    check(ops.padRows(x, 1), [1, 2, 3, 4, 5, 6, 0, 0, 0], 'padRows')
    check(ops.gatherRows(x, tensor([1n, -1n], [2], 'i64')), [4, 5, 6, 0, 0, 0], 'gatherRows')
    check(ops.broadcastTo(ops.slice(x, 0, 0, 1), [2, 3]), [1, 2, 3, 1, 2, 3], 'broadcastTo')
  }
})

const x = zeros(2, 3)
const ids = (...v: number[]) => tensor(BigInt64Array.from(v, BigInt))
rejects('view', {
  'reshape to another number of elements': ['ERR_SHAPE', () => ops.reshape(x, [4])],
  'reshape with two unknown sizes': ['ERR_SHAPE', () => ops.reshape(x, [-1, -1])],
  'reshape that does not divide': ['ERR_SHAPE', () => ops.reshape(x, [4, -1])],
  'reshape to a size below -1': ['ERR_SHAPE', () => ops.reshape(x, [-2, 3])],
  'reshape of nothing to an unknown size': ['ERR_SHAPE', () => ops.reshape(zeros(0, 3), [0, -1])],
  'reshape to a product that overflows': ['ERR_SHAPE', () => ops.reshape(x, [2 ** 32, 2 ** 32, 6])],
  'reshape to nine axes': ['ERR_SHAPE', () => ops.reshape(x, [1, 1, 1, 1, 1, 1, 1, 2, 3])],
  'reshape to half a size': ['ERR_VALUE', () => ops.reshape(x, [0.5, 12])],
  'permute by too few axes': ['ERR_SHAPE', () => ops.permute(x, [0])],
  'permute by too many axes': ['ERR_SHAPE', () => ops.permute(x, [0, 1, 2])],
  'permute by an axis named twice': ['ERR_SHAPE', () => ops.permute(x, [1, -1])],
  'permute by an axis that is not there': ['ERR_SHAPE', () => ops.permute(x, [0, 2])],
  'slice on an axis that is not there': ['ERR_SHAPE', () => ops.slice(x, 2, 0, 1)],
  'slice of a scalar': ['ERR_SHAPE', () => ops.slice(tensor(1), 0, 0, 1)],
  'slice past the end': ['ERR_INDEX', () => ops.slice(x, 1, 0, 4)],
  'slice from before the start': ['ERR_INDEX', () => ops.slice(x, 1, -4, 2)],
  'slice backwards': ['ERR_INDEX', () => ops.slice(x, 1, 2, 1)],
  'slice of half an element': ['ERR_VALUE', () => ops.slice(x, 1, 0.5, 1)],
  'slice to infinity': ['ERR_VALUE', () => ops.slice(x, 1, 0, Number.POSITIVE_INFINITY)],
  'broadcastTo a smaller shape': ['ERR_SHAPE', () => ops.broadcastTo(x, [3])],
  'broadcastTo of another size': ['ERR_SHAPE', () => ops.broadcastTo(x, [2, 4])],
  'broadcastTo of a size that shrinks to 1': ['ERR_SHAPE', () => ops.broadcastTo(x, [1, 3])],
  'broadcastTo a negative size': ['ERR_SHAPE', () => ops.broadcastTo(zeros(1), [-1])],
  'broadcastTo more elements than there can be': ['ERR_SHAPE', () => ops.broadcastTo(zeros(1), [2 ** 30, 2 ** 30])],
  'cat of nothing': ['ERR_SHAPE', () => ops.cat([], 0)],
  'cat of scalars': ['ERR_SHAPE', () => ops.cat([tensor(1), tensor(2)], 0)],
  'cat of other widths': ['ERR_SHAPE', () => ops.cat([x, zeros(2, 4)], 0)],
  'cat of another number of axes': ['ERR_SHAPE', () => ops.cat([x, zeros(3)], 0)],
  'cat of mixed dtypes': ['ERR_DTYPE', () => ops.cat([x, ops.cast(x, 'bf16')], 0)],
  'cat on an axis that is not there': ['ERR_SHAPE', () => ops.cat([x, x], 2)],
  'cat of a tensor alone': ['ERR_VALUE', () => ops.cat(x as unknown as Tensor[], 0)],
  'stack of nothing': ['ERR_SHAPE', () => ops.stack([], 0)],
  'stack of other shapes': ['ERR_SHAPE', () => ops.stack([x, zeros(3, 2)], 0)],
  'stack on an axis that is not there': ['ERR_SHAPE', () => ops.stack([x, x], 3)],
  'stack to nine axes': ['ERR_SHAPE', () => ops.stack([zeros(1, 1, 1, 1, 1, 1, 1, 1)], 0)],
  'padRows of a scalar': ['ERR_SHAPE', () => ops.padRows(tensor(1), 1)],
  'padRows by a negative number': ['ERR_VALUE', () => ops.padRows(x, -1)],
  'padRows by more than there can be': ['ERR_SHAPE', () => ops.padRows(x, 2 ** 50)],
  'gatherRows of a row past the end': ['ERR_INDEX', () => ops.gatherRows(x, ids(0, 2))],
  'gatherRows of a row below -1': ['ERR_INDEX', () => ops.gatherRows(x, ids(-2))],
  'gatherRows of a row of nothing': ['ERR_INDEX', () => ops.gatherRows(zeros(0, 3), ids(0))],
  'gatherRows of a scalar': ['ERR_SHAPE', () => ops.gatherRows(tensor(1), ids(0))],
  'gatherRows by numbers': ['ERR_DTYPE', () => ops.gatherRows(x, zeros(2))],
  'gatherRows to nine axes': [
    'ERR_SHAPE',
    () => ops.gatherRows(zeros(1, 1, 1, 1, 1), ops.reshape(ids(0), [1, 1, 1, 1, 1])),
  ],
})
