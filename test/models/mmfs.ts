import test from 'ava'
import { backward, Module, output, tensor } from 'deem'
import { compare, enliven, gradients, lively, normals, refusesCalls, refusesConfig, whole } from '../_harness/model.js'

const config = {
  d_query: 12,
  d_value: 10,
  d_out: 14,
  value_width: 8,
  n_heads: 2,
  n_points: 3,
  level_sides: [5, 2],
  base_side: 4,
  max_images: 4,
}
const batch = 2
const queries = 3
const images = 3
const positions = 5 * 5 + 2 * 2
const centre = () => tensor([[0.47, 0.53]])
const inputs = () => ({
  query: normals([batch, queries, 12], 1),
  reference_points: centre(),
  features: normals([batch, images, positions, 10], 2),
  mask: whole([1, 1, 0, 1, 0, 1], [batch, images]),
})

refusesConfig('mmfs', config, {
  'an unknown key': [{ n_head: 2 }, /mmfs\.n_head.*n_heads/],
  'a missing key': [{ d_query: undefined }, /d_query/],
  'no levels': [{ level_sides: [] }, /level_sides/],
  'a value width that heads do not divide': [{ n_heads: 3 }, /8.*3/],
  'no points': [{ n_points: 0 }, /n_points.*at least 1/],
  'a base side of zero': [{ base_side: 0 }, /base_side/],
})

refusesCalls('mmfs', config, inputs, {
  'an unknown method': { code: 'ERR_VALUE', method: 'foward' },
  'an unknown option': { code: 'ERR_CONFIG', options: { training: true } },
  'a missing mask': { code: 'ERR_VALUE', inputs: { mask: undefined } },
  'a mask shorter than the queries': { code: 'ERR_SHAPE', inputs: { mask: whole([1, 1, 1, 1, 1, 1], [1, 2, 3]) } },
  'a mask of other images': { code: 'ERR_SHAPE', inputs: { mask: whole([1, 1, 0, 1], [batch, 2]) } },
  'half a mask': {
    code: 'ERR_VALUE',
    inputs: {
      mask: tensor([
        [1, 0.5, 0],
        [1, 1, 1],
      ]),
    },
  },
  'other query width': { code: 'ERR_SHAPE', inputs: { query: normals([batch, queries, 11], 1) } },
  'a flat query': { code: 'ERR_SHAPE', inputs: { query: normals([12], 1) } },
  'features of other levels': { code: 'ERR_SHAPE', inputs: { features: normals([batch, images, 28, 10], 1) } },
  'more images than the table has rows': {
    code: 'ERR_VALUE',
    inputs: {
      features: normals([1, 4, positions, 10], 1),
      query: normals([1, 3, 12], 1),
      mask: whole([1, 1, 1, 1], [1, 4]),
    },
  },
})

gradients('mmfs', config, inputs, { of: 'y' })

test('mmfs: a hidden image does not matter, a visible one does', async (t) => {
  const m = await lively('mmfs', config)
  const x = { ...inputs(), mask: whole([1, 0, 1, 1, 0, 1], [batch, images]) }
  x.features.requiresGrad = true
  const y = output(await m.call('forward', x), 'y')
  await backward([y], [normals(y.shape, 3)])
  const g = x.features.grad?.toFloat32() ?? new Float32Array()
  const one = positions * 10
  for (let b = 0; b < batch; b++)
    for (let n = 0; n < images; n++) {
      const part = g.subarray((b * images + n) * one, (b * images + n + 1) * one)
      t.is(n === 1, Math.hypot(...part) === 0, `image ${n}`)
    }
})

test('mmfs: all kinds of masks say the same', async (t) => {
  const m = await lively('mmfs', config)
  const x = inputs()
  const want = output(await m.call('forward', x), 'y').toFloat32()
  const visible = [1, 1, 0, 1, 0, 1]
  const perQuery = [0, 1].flatMap((b) => Array.from({ length: queries }, () => visible.slice(b * 3, b * 3 + 3)).flat())
  const masks = {
    'per query': whole(perQuery, [batch, queries, images]),
    floats: tensor(Float32Array.from(visible), [batch, images]),
    bytes: tensor(Uint8Array.from(visible), [batch, images]),
    'longer than the queries': whole(
      [0, 1].flatMap((b) => [...Array(12).fill(b), ...visible.slice(b * 3, b * 3 + 3)]),
      [batch, 5, images],
    ),
  }
  for (const [name, mask] of Object.entries(masks))
    compare(t, name, output(await m.call('forward', { ...x, mask }), 'y').toFloat32(), want, 1e-6)
})

test('mmfs: a fresh one looks around its reference point with equal weights', async (t) => {
  const m = await Module.create('mmfs', config)
  t.true(
    m
      .read('sampling_offsets.weight')
      .toFloat32()
      .every((v) => v === 0),
  )
  const offsets = m.read('sampling_offsets.bias').toFloat32()
  compare(t, 'first head, to the right', offsets.subarray(0, 6), [1, 0, 2, 0, 3, 0], 1e-6)
  compare(t, 'second head, to the left', offsets.subarray(6), [-1, 0, -2, 0, -3, 0], 1e-6)
  t.true(
    m
      .read('attention_weights.weight')
      .toFloat32()
      .every((v) => v === 0),
  )
  t.true(m.parameters().find((p) => p.name === 'ignore_token')?.buffer)
})

test('mmfs: where nothing is visible the ignore token remains', async (t) => {
  const m = await lively('mmfs', config)
  const x = { ...inputs(), mask: whole([0, 0, 0, 0, 0, 0], [batch, images]) }
  const y = output(await m.call('forward', x, {}, { grad: false }), 'y').toFloat32()
  const rows = Array.from({ length: batch * queries }, (_, i) => y.subarray(i * 14, i * 14 + 14))
  for (const row of rows) compare(t, 'row', row, rows[0] as Float32Array, 1e-6)
})

test('mmfs: no queries are fine', async (t) => {
  const m = await Module.create('mmfs', config)
  enliven(m)
  const y = output(await m.call('forward', { ...inputs(), query: normals([batch, 0, 12], 1) }), 'y')
  t.deepEqual(y.shape, [batch, 0, 14])
})

// The ignore slots of all images together weigh 1, however many there are, so none is the same as one that is hidden.
test('mmfs: no images are like hidden ones', async (t) => {
  const m = await lively('mmfs', config)
  const run = async (count: number) => {
    const features = normals([batch, count, positions, 10], 1)
    const x = { ...inputs(), features, mask: whole(Array(batch * count).fill(0), [batch, count]) }
    return output(await m.call('forward', x, {}, { grad: false }), 'y').toFloat32()
  }
  compare(t, 'y', await run(0), await run(2), 1e-6)
})
