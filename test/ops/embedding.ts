import test from 'ava'
import { backward, ops, type Tensor, tensor } from 'deem'
import { compare, type F64, generator, type OpCase, opTest, rejects, zeros } from '../_harness/op.js'

const embeddingCase = (rows: number, cols: number, ids: number[], id: (i: number) => number): OpCase => ({
  name: `table [${rows}, ${cols}], ids [${ids}]`,
  inputs: { table: { shape: [rows, cols] }, ids: { shape: ids, dtype: 'i64', values: id } },
  run: (t) => ops.embedding(t['table'] as Tensor, t['ids'] as Tensor),
  reference: (x) => {
    const table = (x['table'] as F64).data
    return Array.from((x['ids'] as F64).data).flatMap((i) => Array.from(table.subarray(i * cols, (i + 1) * cols)))
  },
})

opTest('embedding', [
  embeddingCase(9, 7, [2, 5], (i) => (i * 5) % 9),
  embeddingCase(50, 33, [40], (i) => (i * i) % 7),
  embeddingCase(1, 1, [3], () => 0),
  embeddingCase(4, 600, [2, 3, 2], (i) => i % 4),
  embeddingCase(4, 8, [0], () => 0),
  embeddingCase(4, 8, [], () => 3),
])

const ids = (shape: number[], ...values: number[]) => tensor(BigInt64Array.from(values, BigInt), shape)
rejects('embedding', {
  'an id past the table': ['ERR_INDEX', () => ops.embedding(zeros(4, 2), ids([1], 4))],
  'a negative id': ['ERR_INDEX', () => ops.embedding(zeros(4, 2), ids([1], -1))],
  'any id for an empty table': ['ERR_INDEX', () => ops.embedding(zeros(0, 2), ids([1], 0))],
  'floating ids': ['ERR_DTYPE', () => ops.embedding(zeros(4, 2), zeros(1))],
  'a table of whole numbers': ['ERR_DTYPE', () => ops.embedding(ids([1, 1], 0), ids([1], 0))],
  'a table of three axes': ['ERR_SHAPE', () => ops.embedding(zeros(4, 2, 2), ids([1], 0))],
})

const image = 6
const start = 5
const interleavedCase = (cols: number, shape: number[], embeds: number[], id: (i: number) => number): OpCase => ({
  name: `${cols} channels, ids [${shape}], embeddings [${embeds}]`,
  inputs: {
    ids: { shape, dtype: 'i64', values: id },
    table: { shape: [7, cols] },
    images: { shape: [...embeds, cols] },
    soi: { shape: [1, cols] },
  },
  run: (t) =>
    ops.embedInterleaved(
      t['ids'] as Tensor,
      t['table'] as Tensor,
      t['images'] as Tensor,
      t['soi'] as Tensor,
      image,
      start,
    ),
  reference: (x) => {
    const part = (name: string, row: number) => (x[name] as F64).data.subarray(row * cols, (row + 1) * cols)
    let slot = 0
    return Array.from((x['ids'] as F64).data).flatMap((i) => {
      if (i === image) return Array.from(part('images', slot++))
      const soi = part('soi', 0)
      return Array.from(part('table', i), (v, c) => v + (i === start ? (soi[c] as number) : 0))
    })
  },
})

opTest('embedInterleaved', [
  interleavedCase(13, [2, 7], [2, 2], (i) => [0, start, image, image, 3, 3, 1][i % 7] as number),
  interleavedCase(8, [1, 9], [1, 5, 1], (i) => (i < 5 ? image : start)),
  interleavedCase(300, [2, 3], [0], (i) => i),
  interleavedCase(4, [2, 2], [4], () => image),
])

const call = (id: Tensor, table: Tensor, images: Tensor, soi: Tensor, imageToken = image, soiToken = start) =>
  ops.embedInterleaved(id, table, images, soi, imageToken, soiToken)
rejects('embedInterleaved', {
  'too few image embeddings': ['ERR_SHAPE', () => call(ids([1, 2], 6, 6), zeros(7, 3), zeros(1, 3), zeros(1, 3))],
  'too many image embeddings': ['ERR_SHAPE', () => call(ids([1, 2], 6, 0), zeros(7, 3), zeros(2, 3), zeros(1, 3))],
  'image embeddings of another width': ['ERR_SHAPE', () => call(ids([1, 1], 6), zeros(7, 3), zeros(1, 4), zeros(1, 3))],
  'a start vector of another shape': ['ERR_SHAPE', () => call(ids([1, 1], 6), zeros(7, 3), zeros(1, 3), zeros(3))],
  'an id past the table': ['ERR_INDEX', () => call(ids([1, 2], 6, 7), zeros(7, 3), zeros(1, 3), zeros(1, 3))],
  'ids of one axis': ['ERR_SHAPE', () => call(ids([1], 6), zeros(7, 3), zeros(1, 3), zeros(1, 3))],
  'one token for both': ['ERR_VALUE', () => call(ids([1, 1], 6), zeros(7, 3), zeros(1, 3), zeros(1, 3), 6, 6)],
  'mixed dtypes': ['ERR_DTYPE', () => call(ids([1, 1], 6), zeros(7, 3), ops.cast(zeros(1, 3), 'bf16'), zeros(1, 3))],
})

test('embedding: a frozen table gets no gradient, the rest do', async (t) => {
  const { normal } = generator(3)
  const [table, images, soi] = [zeros(7, 3), zeros(1, 3), zeros(1, 3)] as const
  images.requiresGrad = true
  soi.requiresGrad = true
  const y = call(ids([1, 4], 6, 5, 0, 5), table, images, soi)
  const dy = Float32Array.from({ length: 12 }, normal)
  await backward([y], [tensor(dy, y.shape)])
  t.is(table.grad, null)
  compare(t, 'images', (images.grad as Tensor).toFloat32(), dy.subarray(0, 3), 0)
  const sum = [0, 1, 2].map((c) => Math.fround((dy[3 + c] as number) + (dy[9 + c] as number)))
  compare(t, 'soi', (soi.grad as Tensor).toFloat32(), sum, 0)
})

test('embedding: the gradient of a bf16 table is summed in f32', async (t) => {
  const table = ops.cast(zeros(2, 5), 'bf16').detach()
  table.requiresGrad = true
  const y = ops.embedding(table, ids([1000], ...new Array<number>(1000).fill(1)))
  await backward([y], [ops.full(y.shape, 1.25, 'bf16')])
  t.deepEqual((table.grad as Tensor).toFloat32(), Float32Array.from([0, 0, 0, 0, 0, 1248, 1248, 1248, 1248, 1248]))
})

// Results of 16 MB and more are written past the caches; rows here end inside cache lines.
test('embedding, gatherRows: results too large for a cache hold the rows of their table', (t) => {
  const [rows, few, width] = [4100, 16, 1030]
  const { normal } = generator(3)
  const table = tensor(Float32Array.from({ length: few * width }, normal), [few, width])
  const ids = Array.from({ length: rows }, (_, i) => (i * 7) % few)
  const want = table.toFloat32()
  for (const dtype of ['f32', 'bf16'] as const) {
    const some = dtype === 'f32' ? ids : [...ids, ...ids]
    const from = ops.cast(table, dtype)
    const rounded = dtype === 'f32' ? want : from.toFloat32()
    const index = tensor(BigInt64Array.from(some, BigInt), [some.length])
    for (const y of [ops.embedding(from, index), ops.gatherRows(from, index)]) {
      const got = y.toFloat32()
      const wrong = some.findIndex(
        (id, r) =>
          !Buffer.from(got.buffer, got.byteOffset + 4 * r * width, 4 * width).equals(
            Buffer.from(rounded.buffer, rounded.byteOffset + 4 * id * width, 4 * width),
          ),
      )
      t.is(wrong, -1, dtype)
    }
  }
})
