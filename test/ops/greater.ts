import test from 'ava'
import { ops, tensor } from 'deem'
import { rejects, zeros } from '../_harness/op.js'

const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN]

test('greater: values, by limit and dtype', (t) => {
  const values = [-inf, -1.5, -0, 0, 1e-30, 1.5, 2, inf, nan]
  for (const limit of [-inf, -1.5, 0, 1.5, inf, nan])
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const x = ops.cast(tensor(values), dtype)
      const y = ops.greater(x, limit)
      t.is(y.dtype, 'u8')
      t.deepEqual(
        [...y.read()],
        [...x.toFloat32()].map((v) => Number(v > limit)),
        `${dtype} > ${limit}`,
      )
    }
})

test('greater: every size around a vector, views, nothing at all', (t) => {
  for (let n = 0; n < 70; n++) {
    const x = Float32Array.from({ length: n }, (_, i) => (i * 7) % 5)
    t.deepEqual(
      [...ops.greater(tensor(x), 2).read()],
      [...x].map((v) => Number(v > 2)),
      `${n}`,
    )
  }
  const x = tensor([
    [1, 5, 3],
    [4, 2, 6],
  ])
  t.deepEqual([...ops.greater(ops.permute(x, [1, 0]), 3).read()], [0, 1, 1, 0, 0, 1])
  t.deepEqual([...ops.greater(ops.slice(x, 1, 1, 3), 3).read()], [1, 0, 0, 1])
  t.deepEqual(ops.greater(zeros(0, 3), 0).shape, [0, 3])
})

test('greater: a mask has no history', (t) => {
  const x = zeros(3)
  x.requiresGrad = true
  t.false(ops.greater(x, 0).tracked)
})

rejects('greater', {
  integers: ['ERR_DTYPE', () => ops.greater(tensor(new BigInt64Array(2)), 0)],
  'a limit that is no number': ['ERR_VALUE', () => ops.greater(zeros(2), '0' as unknown as number)],
})
