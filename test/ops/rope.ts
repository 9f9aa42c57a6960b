import { ops, type Tensor, tensor } from 'deem'
import { type F64, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

/** The angle is a product of two f32 numbers, as in the published code; its cosine and sine are exact. */
function reference({ x, positions }: Record<string, F64>, base: number): Float64Array {
  const { data, shape } = x as F64
  const [, tokens, heads, dim] = shape as [number, number, number, number]
  const half = dim / 2
  const rows = (positions as F64).data
  const y = new Float64Array(data.length)
  for (let r = 0; r < data.length; r += dim) {
    const position = rows[Math.floor(r / (dim * heads)) % rows.length] as number
    for (let i = 0; i < half; i++) {
      const frequency = Math.fround(1 / Math.fround(base ** Math.fround((2 * i) / dim)))
      const angle = Math.fround(Math.fround(position) * frequency)
      const a = data[r + i] as number
      const b = data[r + half + i] as number
      y[r + i] = a * Math.cos(angle) - b * Math.sin(angle)
      y[r + half + i] = b * Math.cos(angle) + a * Math.sin(angle)
    }
  }
  void tokens
  return y
}

const ropeCase = (
  shape: number[],
  position: (i: number) => number,
  rows = shape[0] as number,
  base = 10000,
): OpCase => ({
  name: `[${shape}], ${rows} rows of positions from ${position(0)}, base ${base}`,
  inputs: { x: { shape }, positions: { shape: [rows, shape[1] as number], dtype: 'i64', values: position } },
  run: (t) => ops.rope(t['x'] as Tensor, t['positions'] as Tensor, base),
  reference: (x) => reference(x, base),
})

opTest('rope', [
  ropeCase([2, 7, 2, 32], (i) => i),
  ropeCase([2, 7, 2, 32], (i) => i * 3, 1),
  ropeCase([1, 5, 3, 2], (i) => i),
  ropeCase([1, 5, 1, 6], (i) => i - 2),
  ropeCase([1, 9, 2, 80], (i) => 1500 + i * 17),
  ropeCase([1, 9, 2, 128], (i) => 99_000 + i * 111),
  ropeCase([1, 3, 1, 64], (i) => 123_456_789 + i),
  ropeCase([2, 4, 2, 34], (i) => i, 2, 500_000),
  ropeCase([2, 0, 2, 8], (i) => i),
])

const positions = (...rows: bigint[]) => tensor(BigInt64Array.from(rows), [1, rows.length])
rejects('rope', {
  'an odd head size': ['ERR_SHAPE', () => ops.rope(zeros(1, 1, 1, 3), positions(0n), 10000)],
  'three axes': ['ERR_SHAPE', () => ops.rope(zeros(1, 1, 4), positions(0n), 10000)],
  'too many positions': ['ERR_SHAPE', () => ops.rope(zeros(1, 1, 1, 4), positions(0n, 1n), 10000)],
  'floating positions': ['ERR_DTYPE', () => ops.rope(zeros(1, 1, 1, 4), zeros(1, 1), 10000)],
  'a position beyond 2^31': ['ERR_INDEX', () => ops.rope(zeros(1, 1, 1, 4), positions(2n ** 31n), 10000)],
  'a negative base': ['ERR_VALUE', () => ops.rope(zeros(1, 1, 1, 4), positions(0n), -1)],
})
