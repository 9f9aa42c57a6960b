import test from 'ava'
import { ops, type Tensor, tensor } from 'deem'
import { compare, opTest, rejects, zeros } from '../_harness/op.js'

// Angles reach 1000 and are f32, so a rounding of the frequency alone is worth 6e-5; with angles of at most 1 there is none.
const embedding = (t: number[], dim: number) => {
  const half = dim / 2
  return t.flatMap((step) => {
    const angles = Array.from({ length: half }, (_, i) => step * 10000 ** (-i / half))
    return [...angles.map(Math.cos), ...angles.map(Math.sin)]
  })
}
const embeddingCase = (t: number[], dim: number, limit: number) => ({
  name: `t ${t} dim ${dim}`,
  inputs: { t: { shape: [t.length], values: (i: number) => t[i] as number, dtype: 'i64' as const } },
  run: (x: Record<string, Tensor>) => ops.timestepEmbedding(x['t'] as Tensor, dim),
  reference: () => embedding(t, dim),
  tolerance: { value: limit },
})

opTest('timestepEmbedding', [
  embeddingCase([0, 1], 32, 2e-6),
  embeddingCase([1], 2, 2e-6),
  embeddingCase([], 8, 2e-6),
  embeddingCase([3, 801, 999], 320, 2e-4),
])

test('timestepEmbedding: takes floating steps', (t) => {
  const y = ops.timestepEmbedding(tensor([0.5, 0.25], [2]), 8)
  compare(t, 'value', y.toFloat32(), embedding([0.5, 0.25], 8), 2e-6)
})

const line = (dim: number, p: number) => {
  const angles = Array.from({ length: dim / 2 }, (_, i) => p * 10000 ** (-i / (dim / 2)))
  return [...angles.map(Math.sin), ...angles.map(Math.cos)]
}
const range = (n: number) => Array.from({ length: n }, (_, i) => i)

test('sincos1d: sines, then cosines', (t) => {
  const y = ops.sincos1d(64, 33)
  t.deepEqual(y.shape, [33, 64])
  compare(
    t,
    'value',
    y.toFloat32(),
    range(33).flatMap((p) => line(64, p)),
    5e-6,
  )
  t.deepEqual(ops.sincos1d(4, 0).shape, [0, 4])
})

test('sincos2d: row half, column half, a zero row in front if asked', (t) => {
  const want = range(16).flatMap((i) => [...line(16, Math.floor(i / 4)), ...line(16, i % 4)])
  const y = ops.sincos2d(32, 4, false)
  t.deepEqual(y.shape, [16, 32])
  compare(t, 'value', y.toFloat32(), want, 2e-6)
  compare(t, 'with cls', ops.sincos2d(32, 4, true).toFloat32(), [...range(32).map(() => 0), ...want], 2e-6)
})

rejects('tables', {
  'an odd width': ['ERR_VALUE', () => ops.timestepEmbedding(zeros(2), 7)],
  'steps in a matrix': ['ERR_SHAPE', () => ops.timestepEmbedding(zeros(2, 2), 8)],
  'steps of bytes': ['ERR_DTYPE', () => ops.timestepEmbedding(ops.cast(zeros(2), 'u8'), 8)],
  'a 1-D table of odd width': ['ERR_VALUE', () => ops.sincos1d(5, 4)],
  'a negative count': ['ERR_VALUE', () => ops.sincos1d(4, -1)],
  'a 2-D table whose width is no multiple of 4': ['ERR_VALUE', () => ops.sincos2d(6, 4, false)],
})
