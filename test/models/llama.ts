import test from 'ava'
import { backward, defaultDevice, Module, ops, output, type Tensor, tensor } from 'deem'
import {
  compare,
  gradients,
  type Inputs,
  lively,
  normals,
  refusesCalls,
  refusesConfig,
  whole,
} from '../_harness/model.js'

const config = {
  hidden_size: 16,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 20,
  num_hidden_layers: 3,
  vocab_size: 12,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 32,
  mmfs_heads: 2,
  mmfs_points: 2,
  mmfs_base_side: 4,
  mmfs_max_images: 5,
  image_embed_dim: 8,
  cross_attention_frequency: 2,
  spatial_shapes: [4, 2],
}
const length = 6
// Row 0 is padded on the left by two; its images start at positions 2 and 4, those of row 1 at 0 and 3.
const keep = () => whole([0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [2, length])
const visible = (starts: number[][]) =>
  tensor(
    Float32Array.from(starts.flatMap((row) => Array.from({ length }, (_, q) => row.map((s) => Number(q >= s))).flat())),
    [2, length, 2],
  )
const inputs = (): Inputs => ({
  embeds: normals([2, length, 16], 1),
  features: normals([2, 2, 20, 8], 2),
  image_mask: visible([
    [2, 4],
    [0, 3],
  ]),
  keep: keep(),
})
const hidden = async (m: Module, x: Record<string, Tensor | undefined>, options = {}) =>
  output(await m.call('forward', x, options, { grad: false }), 'last_hidden')

refusesConfig('llama', config, {
  'an unknown key': [{ hiden_size: 16 }, /hiden_size.*hidden_size/],
  'a missing key': [{ rms_norm_eps: undefined }, /rms_norm_eps/],
  'heads that do not divide the width': [{ num_attention_heads: 3 }, /16.*3/],
  'heads of an odd size': [{ num_attention_heads: 16, num_key_value_heads: 16 }, /even/],
  'key heads that do not divide the heads': [{ num_key_value_heads: 3 }, /4.*3/],
  'no cross attention frequency': [{ cross_attention_frequency: 0 }, /cross_attention_frequency/],
  'no maps': [{ spatial_shapes: [] }, /level_sides/],
})

const past = (name: string, shape: number[]) => ({
  ...Object.fromEntries(
    [0, 1, 2].flatMap((i) => ['key', 'value'].map((k) => [`past_${k}.${i}`, normals([2, 2, 3, 4], i)])),
  ),
  [name]: normals(shape, 9),
  keep: undefined,
})
refusesCalls('llama', config, inputs, {
  'an unknown method': { code: 'ERR_VALUE', method: 'generate' },
  'an unknown option': { code: 'ERR_CONFIG', options: { usecache: true } },
  'a state with checkpointing': { code: 'ERR_VALUE', options: { use_cache: true, checkpoint: true } },
  'embeddings of another width': { code: 'ERR_SHAPE', inputs: { embeds: normals([2, length, 15], 1) } },
  'a mask of another length': { code: 'ERR_SHAPE', inputs: { keep: whole([1, 1], [2, 1]) } },
  'features without a mask': { code: 'ERR_VALUE', inputs: { image_mask: undefined } },
  'features of another width': { code: 'ERR_SHAPE', inputs: { features: normals([2, 2, 20, 7], 1) } },
  'features of other maps': { code: 'ERR_SHAPE', inputs: { features: normals([2, 2, 19, 8], 1) } },
  'features of other rows': { code: 'ERR_SHAPE', inputs: { features: normals([3, 2, 20, 8], 1) } },
  'positions of another length': { code: 'ERR_SHAPE', inputs: { positions: whole([0, 1], [2, 1]) } },
  'too many positions': {
    code: 'ERR_VALUE',
    inputs: { embeds: normals([1, 33, 16], 1), features: undefined, keep: undefined },
  },
  'past keys of other heads': { code: 'ERR_SHAPE', inputs: past('past_key.1', [2, 4, 3, 4]) },
  'past values of another length': { code: 'ERR_SHAPE', inputs: past('past_value.2', [2, 2, 4, 4]) },
  'a past that lacks a layer': {
    code: 'ERR_VALUE',
    inputs: { ...past('past_key.0', [2, 2, 3, 4]), 'past_key.2': undefined },
  },
})

// Inputs come from a function because tests run side by side: into shared tensors both would gather their gradients.
gradients('llama', config, inputs, { of: 'last_hidden', inputs: ['embeds', 'features'], unread: /embed_tokens/ })

test('llama: names and shapes', async (t) => {
  const m = await Module.create('llama', config)
  const shapes = Object.fromEntries(m.parameters().map((p) => [p.name, p.shape]))
  t.deepEqual(shapes['layers.0.self_attn.k_proj.weight'], [8, 16])
  t.deepEqual(shapes['layers.2.llama_cross_attn.gate'], [1])
  t.deepEqual(shapes['layers.2.llama_cross_attn.attn.ignore_token'], [1, 1, 1, 8])
  t.is(shapes['layers.1.llama_cross_attn.gate'], undefined)
  const { embeds } = await m.call('embed', { input_ids: whole([3, 11], [1, 2]) })
  const table = m.read('embed_tokens.weight').toFloat32()
  t.deepEqual([...(embeds as Tensor).toFloat32()], [...table.subarray(48, 64), ...table.subarray(176, 192)])
})

test('llama: defaults are what they stand for', async (t) => {
  const m = await lively('llama', config)
  const { embeds, features, image_mask } = inputs()
  const want = (await hidden(m, { embeds, features, image_mask })).toFloat32()
  const counted = whole([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], [2, length])
  const all = whole(Array(2 * length).fill(1), [2, length])
  compare(
    t,
    'positions',
    (await hidden(m, { embeds, features, image_mask, positions: counted })).toFloat32(),
    want,
    1e-6,
  )
  compare(t, 'keep', (await hidden(m, { embeds, features, image_mask, keep: all })).toFloat32(), want, 1e-6)
  t.notDeepEqual((await hidden(m, { embeds })).toFloat32(), want)
})

test('llama: images do nothing before the gates open', async (t) => {
  const m = await Module.create('llama', config)
  const { embeds, features, image_mask } = inputs()
  const without = (await hidden(m, { embeds })).toFloat32()
  compare(t, 'with images', (await hidden(m, { embeds, features, image_mask })).toFloat32(), without, 1e-6)
})

test('llama: nothing sees what comes later', async (t) => {
  const m = await lively('llama', config)
  // Without padding: a row that sees no key gets the mean of all values, later ones too.
  const x: Record<string, Tensor | undefined> = { ...inputs(), keep: undefined }
  const want = ops.slice(await hidden(m, x), 1, 0, 4)
  const embeds = ops.cat([ops.slice(x['embeds'] as Tensor, 1, 0, 4), normals([2, 2, 16], 8)], 1)
  compare(t, 'first four', ops.slice(await hidden(m, { ...x, embeds }), 1, 0, 4).toFloat32(), want.toFloat32(), 1e-6)
})

/** Runs the rows in pieces with a cache; `maskOf` cuts the image mask for the piece from..to. */
async function inPieces(
  m: Module,
  x: Inputs,
  ends: number[],
  maskOf: (from: number, to: number) => Tensor,
): Promise<Tensor> {
  const parts: Tensor[] = []
  let state: Record<string, Tensor> = {}
  let from = 0
  for (const to of ends) {
    const kept = Object.fromEntries(
      Object.entries(state).flatMap(([name, v]) => (/^(key|value)\./.test(name) ? [[`past_${name}`, v]] : [])),
    )
    const piece = { ...x, ...kept, embeds: ops.slice(x['embeds'] as Tensor, 1, from, to), image_mask: maskOf(from, to) }
    const seen = { keep: ops.slice(x['keep'] as Tensor, 1, 0, to) }
    state = await m.call('forward', { ...piece, ...seen }, { use_cache: true }, { grad: false })
    parts.push(output(state, 'last_hidden'))
    from = to
  }
  return ops.cat(parts, 1)
}

for (const heads of [2, 4])
  test(`llama: with a cache the states are the same, ${heads} key heads`, async (t) => {
    const m = await lively('llama', { ...config, num_key_value_heads: heads })
    const x = inputs()
    const want = await hidden(m, x)
    const mask = x['image_mask'] as Tensor
    const real = (y: Tensor) =>
      ops.mul(y, ops.reshape(ops.cast(keep().to(defaultDevice()), 'f32'), [2, length, 1])).toFloat32()
    for (const ends of [[6], [1, 2, 3, 4, 5, 6], [3, 6], [5, 6]]) {
      const got = await inPieces(m, x, ends, (from, to) => ops.slice(mask, 1, from, to))
      compare(t, `pieces ending at ${ends}`, real(got), real(want), 2e-6)
    }
    // Masks of all positions so far serve a single new one by their last row.
    const got = await inPieces(m, x, [3, 4, 5, 6], (_, to) => ops.slice(mask, 1, 0, to))
    compare(t, 'whole masks', real(got), real(want), 2e-6)
  })

test('llama: checkpointing changes neither values nor gradients', async (t) => {
  const run = async (checkpoint: boolean) => {
    const m = await lively('llama', config)
    m.freeze(/layers\.1\./)
    const x = inputs()
    ;(x['embeds'] as Tensor).requiresGrad = true
    ;(x['features'] as Tensor).requiresGrad = true
    const y = output(await m.call('forward', x, { checkpoint }), 'last_hidden')
    await backward([y], [normals(y.shape, 3)])
    const all = [
      y,
      (x['embeds'] as Tensor).grad,
      (x['features'] as Tensor).grad,
      ...m.parameters().map((p) => m.gradient(p.name)),
    ]
    return all.map((v) => v && [...v.toFloat32()])
  }
  t.deepEqual(await run(true), await run(false))
})

test('llama: a graph with checkpoints outlives the model', async (t) => {
  const embeds = normals([2, length, 16], 1)
  embeds.requiresGrad = true
  let y: Tensor
  {
    using m = await lively('llama', config)
    y = output(await m.call('forward', { embeds }, { checkpoint: true }), 'last_hidden')
  }
  await backward([y], [normals(y.shape, 3)])
  t.true(ops.norm(embeds.grad as Tensor) > 0)
})

test('llama: inputs of layers on request', async (t) => {
  const m = await lively('llama', config)
  const x = inputs()
  const y = await m.call('forward', x, { hidden_states: true }, { grad: false })
  t.deepEqual(Object.keys(y).sort(), ['last_hidden', 'layer_in.0', 'layer_in.1', 'layer_in.2'])
  t.deepEqual(output(y, 'layer_in.0').toFloat32(), (x['embeds'] as Tensor).toFloat32())
})
