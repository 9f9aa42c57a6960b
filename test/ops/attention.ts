import test from 'ava'
import { type AttentionOptions, backward, type DType, ops, setThreads, type Tensor, tensor, threads } from 'deem'
import { compare, type F64, generator, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

interface Sizes {
  batch?: number
  queryBatch?: number
  tq: number
  tk: number
  heads?: number
  keyHeads?: number
  dim: number
}
type Keep = 'right' | 'left' | 'scattered' | 'nothing'

/** Scores in a plain double loop; a query that sees no key takes the mean of all values. */
function reference(x: Record<string, F64>, { causal = false, scale = 0 }: AttentionOptions): Float64Array {
  const { q, k, v, keep } = x as Record<'q' | 'k' | 'v' | 'keep', F64>
  const [batches, tk, keyHeads, dim] = k.shape as [number, number, number, number]
  const [queryBatches, tq, heads] = q.shape as [number, number, number]
  const y = new Float64Array(batches * tq * heads * dim)
  const row = (t: F64, b: number, i: number, h: number) => {
    const [, tokens, count] = t.shape as [number, number, number]
    return t.data.subarray(((b * tokens + i) * count + h) * dim, ((b * tokens + i) * count + h + 1) * dim)
  }
  const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, d) => sum + value * (b[d] as number), 0)
  for (let b = 0; b < batches; b++)
    for (let h = 0; h < heads; h++) {
      const kh = Math.floor((h * keyHeads) / heads)
      for (let i = 0; i < tq; i++) {
        const query = row(q, queryBatches === 1 ? 0 : b, i, h)
        const weights = new Float64Array(tk)
        for (let j = 0; j < tk; j++) {
          const seen = !(causal && j > tk - tq + i) && keep?.data[b * tk + j] !== 0
          weights[j] = seen ? dot(query, row(k, b, j, kh)) * (scale || 1 / Math.sqrt(dim)) : Number.NEGATIVE_INFINITY
        }
        const top = weights.reduce((a, w) => Math.max(a, w))
        for (let j = 0; j < tk; j++) weights[j] = Number.isFinite(top) ? Math.exp((weights[j] as number) - top) : 1
        const total = weights.reduce((a, w) => a + w)
        const out = y.subarray(((b * tq + i) * heads + h) * dim, ((b * tq + i) * heads + h + 1) * dim)
        for (let j = 0; j < tk; j++) {
          const value = row(v, b, j, kh)
          for (let d = 0; d < dim; d++)
            out[d] = (out[d] as number) + ((weights[j] as number) / total) * (value[d] as number)
        }
      }
    }
  return y
}

/** Row 0 of the batch and the others are padded differently. */
const kept: Record<Keep, (j: number, tk: number, b: number) => boolean> = {
  right: (j, tk, b) => j < tk - 2 - b,
  left: (j, _, b) => j >= 3 - b,
  scattered: (j, _, b) => (j * 7 + b) % 3 !== 0,
  nothing: (_j, _tk, b) => b > 0,
}

function attentionCase(sizes: Sizes, options: AttentionOptions = {}, keep?: Keep, probes = 40): OpCase {
  const { batch = 1, queryBatch = batch, tq, tk, heads = 1, keyHeads = heads, dim } = sizes
  const q = { shape: [queryBatch, tq, heads, dim] }
  const kv = { shape: [batch, tk, keyHeads, dim] }
  const named = Object.entries({ batch, queryBatch, tq, tk, heads, keyHeads, dim, ...options, keep })
  return {
    name: named.map(([key, value]) => `${key} ${value}`).join(' '),
    inputs: {
      q,
      k: kv,
      v: kv,
      ...(keep && {
        keep: {
          shape: [batch, tk],
          dtype: keep === 'left' ? ('i64' as const) : ('u8' as const),
          values: (i: number) => Number(kept[keep](i % tk, tk, Math.floor(i / tk))),
        },
      }),
    },
    run: (t) => ops.attention(t['q'] as Tensor, t['k'] as Tensor, t['v'] as Tensor, t['keep'] ?? null, options),
    reference: (x) => reference(x, options),
    probes,
  }
}

const causal = { causal: true }
opTest('attention', [
  // Head sizes: of the models, and around vectors and tiles.
  ...[1, 2, 15, 16, 17, 31, 32, 33, 40, 64, 80, 128, 160, 256].map((dim) => attentionCase({ tq: 7, tk: 9, dim })),
  // Tokens around panels of 32 queries and blocks of 64 keys.
  ...[1, 5, 31, 32, 33].map((tq) => attentionCase({ tq, tk: tq, heads: 2, dim: 8 }, causal)),
  ...[1, 63, 64, 65].map((tk) => attentionCase({ tq: 3, tk, heads: 2, dim: 8 })),
  attentionCase({ tq: 77, tk: 130, dim: 16 }, causal, undefined, 10),
  attentionCase({ tq: 3, tk: 16, heads: 2, dim: 8 }, causal),
  attentionCase({ batch: 2, tq: 13, tk: 13, heads: 2, dim: 8 }, { scale: -0.7 }),
  ...(['right', 'left', 'scattered', 'nothing'] as const).flatMap((keep) => [
    attentionCase({ batch: 2, tq: 7, tk: 13, heads: 2, dim: 8 }, {}, keep),
    attentionCase({ batch: 2, tq: 13, tk: 13, heads: 2, dim: 8 }, causal, keep),
  ]),
  attentionCase({ batch: 2, tq: 40, tk: 70, dim: 8 }, causal, 'scattered', 10),
  attentionCase({ batch: 2, tq: 9, tk: 9, heads: 6, keyHeads: 2, dim: 8 }, causal, 'left'),
  attentionCase({ batch: 3, queryBatch: 1, tq: 5, tk: 13, heads: 2, dim: 8 }, {}, 'right'),
  attentionCase({ batch: 3, queryBatch: 1, tq: 5, tk: 13, heads: 4, keyHeads: 1, dim: 8 }),
  attentionCase({ tq: 0, tk: 5, dim: 8 }),
  attentionCase({ batch: 0, tq: 4, tk: 5, dim: 8 }),
])

rejects('attention', {
  'an unknown option': [
    'ERR_CONFIG',
    () => ops.attention(zeros(1, 4, 1, 8), zeros(1, 4, 1, 8), zeros(1, 4, 1, 8), null, { causl: true } as never),
  ],
  'more queries than keys when causal': [
    'ERR_SHAPE',
    () => ops.attention(zeros(1, 5, 1, 8), zeros(1, 4, 1, 8), zeros(1, 4, 1, 8), null, causal),
  ],
  'no key at all': [
    'ERR_SHAPE',
    () => ops.attention(zeros(1, 5, 1, 8), zeros(1, 0, 1, 8), zeros(1, 0, 1, 8), null, {}),
  ],
  'values of another shape': [
    'ERR_SHAPE',
    () => ops.attention(zeros(1, 5, 1, 8), zeros(1, 4, 1, 8), zeros(1, 5, 1, 8), null, {}),
  ],
  'another head size': [
    'ERR_SHAPE',
    () => ops.attention(zeros(1, 5, 1, 8), zeros(1, 4, 1, 9), zeros(1, 4, 1, 9), null, {}),
  ],
  'key heads that do not divide': [
    'ERR_SHAPE',
    () => ops.attention(zeros(1, 5, 3, 8), zeros(1, 4, 2, 8), zeros(1, 4, 2, 8), null, {}),
  ],
  'another batch': [
    'ERR_SHAPE',
    () => ops.attention(zeros(2, 5, 1, 8), zeros(3, 4, 1, 8), zeros(3, 4, 1, 8), null, {}),
  ],
  'three axes': ['ERR_SHAPE', () => ops.attention(zeros(5, 1, 8), zeros(1, 4, 1, 8), zeros(1, 4, 1, 8), null, {})],
  'a mask of queries': [
    'ERR_SHAPE',
    () => ops.attention(zeros(1, 5, 1, 8), zeros(1, 4, 1, 8), zeros(1, 4, 1, 8), tensor(new Uint8Array(5), [1, 5]), {}),
  ],
  'a floating mask': [
    'ERR_DTYPE',
    () => ops.attention(zeros(1, 5, 1, 8), zeros(1, 4, 1, 8), zeros(1, 4, 1, 8), zeros(1, 4), {}),
  ],
  'mixed dtypes': [
    'ERR_DTYPE',
    () => ops.attention(zeros(1, 5, 1, 8), ops.cast(zeros(1, 4, 1, 8), 'bf16'), zeros(1, 4, 1, 8), null, {}),
  ],
  'an infinite scale': [
    'ERR_VALUE',
    () => ops.attention(zeros(1, 5, 1, 8), zeros(1, 4, 1, 8), zeros(1, 4, 1, 8), null, { scale: 1 / 0 }),
  ],
})

const normals = (count: number, seed: number) => {
  const { normal } = generator(seed)
  return Float32Array.from({ length: count }, normal)
}

/** Value and gradients of one call on given data. */
async function valueAndGradients(
  parts: Tensor[],
  options: AttentionOptions,
  keep: Tensor | null,
  dtype: DType = 'f32',
) {
  for (const part of parts) part.requiresGrad = true
  const [q, k, v] = parts.map((part) => ops.cast(part, dtype)) as [Tensor, Tensor, Tensor]
  const y = ops.attention(q, k, v, keep, options)
  const dy = ops.cast(tensor(normals(y.size, 9), y.shape), dtype)
  await backward([y], [dy])
  return [y.toFloat32(), ...parts.map((part) => (part.grad as Tensor).toFloat32())]
}

const shapes = [
  [2, 70, 4, 16],
  [2, 150, 2, 16],
  [2, 150, 2, 16],
]
const parts = () =>
  shapes.map((shape, i) =>
    tensor(
      normals(
        shape.reduce((a, b) => a * b),
        i,
      ),
      shape,
    ),
  )
const mask = () =>
  tensor(
    Uint8Array.from({ length: 300 }, (_, i) => Number(i % 5 !== 0)),
    [2, 150],
  )

test.serial('attention: the same bits with any number of threads', async (t) => {
  const before = threads()
  try {
    const results: Float32Array[][] = []
    for (const count of [1, 2, 3, 8]) {
      setThreads(count)
      results.push(await valueAndGradients(parts(), causal, mask()))
    }
    for (const other of results.slice(1)) t.deepEqual(other, results[0])
  } finally {
    setThreads(before)
  }
})

test('attention: views of a fused projection', async (t) => {
  const [b, tokens, heads, dim] = [2, 37, 3, 20] as const
  const fused = tensor(normals(b * tokens * 3 * heads * dim, 1), [b, tokens, 3 * heads * dim])
  fused.requiresGrad = true
  const width = heads * dim
  const view = (i: number) => ops.reshape(ops.slice(fused, 2, i * width, (i + 1) * width), [b, tokens, heads, dim])
  const y = ops.attention(view(0), view(1), view(2), null, causal)
  const dy = tensor(normals(y.size, 9), y.shape)
  await backward([y], [dy])
  const copies = [0, 1, 2].map((i) => tensor(ops.contiguous(view(i).detach()).toFloat32(), [b, tokens, heads, dim]))
  const [value, ...grads] = await valueAndGradients(copies, causal, null)
  t.deepEqual(y.toFloat32(), value)
  for (const [i, grad] of grads.entries()) {
    const got = ops.slice((fused.grad as Tensor).detach(), 2, i * width, (i + 1) * width)
    t.deepEqual(ops.contiguous(got).toFloat32(), grad)
  }
})

for (const [dtype, limit] of [['bf16', 1.6e-2] as const, ['f16', 2e-3] as const])
  test(`attention: ${dtype} within rounding of f32`, async (t) => {
    const rounded = () => parts().map((p) => tensor(ops.cast(ops.cast(p, dtype), 'f32').toFloat32(), p.shape))
    const want = await valueAndGradients(rounded(), causal, mask())
    const got = await valueAndGradients(rounded(), causal, mask(), dtype)
    for (const [i, w] of want.entries())
      compare(t, ['y', 'dq', 'dk', 'dv'][i] as string, got[i] as Float32Array, w, limit)
  })

test('attention: gradients only where wanted', async (t) => {
  const [q, k, v] = parts() as [Tensor, Tensor, Tensor]
  const all = await valueAndGradients([q, k, v], {}, null)
  for (const [i, name] of ['q', 'k', 'v'].entries()) {
    const fresh = parts()
    const one = fresh[i] as Tensor
    one.requiresGrad = true
    const y = ops.attention(fresh[0] as Tensor, fresh[1] as Tensor, fresh[2] as Tensor, null, {})
    await backward([y], [tensor(normals(y.size, 9), y.shape)])
    t.deepEqual((one.grad as Tensor).toFloat32(), all[i + 1], name)
  }
})
