import test from 'ava'
import { backward, defaultDevice, Module, ops, output, type Tensor } from 'deem'
import { compare, gradients, lively, normals, refusesCalls, refusesConfig, whole } from '../_harness/model.js'

const config = {
  num_queries: 3,
  hidden_size: 8,
  encoder_hidden_size: 6,
  num_hidden_layers: 3,
  num_attention_heads: 2,
  cross_attention_frequency: 2,
  intermediate_size: 10,
  hidden_dropout_prob: 0,
  attention_probs_dropout_prob: 0,
}
const normalised = { ...config, qk_normalization: true, num_hidden_layers: 2 }
const keep = () => whole([1, 1, 1, 1, 0, 1, 1, 0, 0, 0], [2, 5])
const inputs = () => ({ context: normals([2, 5, 6], 1) })

refusesConfig('perceiver', config, {
  'an unknown key': [{ num_querys: 3 }, /num_querys.*num_queries/],
  'heads that do not divide the width': [{ num_attention_heads: 3 }, /8.*3/],
  'a dropout of one': [{ hidden_dropout_prob: 1 }, /hidden_dropout_prob.*\[0, 1\)/],
  'no layers': [{ num_hidden_layers: 0 }, /num_hidden_layers/],
  'a number as a flag': [{ qk_normalization: 1 }, /qk_normalization.*true or false/],
})

refusesCalls('perceiver', config, inputs, {
  'an unknown method': { code: 'ERR_VALUE', method: 'run' },
  'an unknown option': { code: 'ERR_CONFIG', options: { train: true } },
  'no context': { code: 'ERR_VALUE', inputs: { context: undefined } },
  'a context of another width': { code: 'ERR_SHAPE', inputs: { context: normals([2, 5, 7], 1) } },
  'a mask of another length': { code: 'ERR_SHAPE', inputs: { context_mask: whole([1, 1, 1, 1], [2, 2]) } },
  'a floating mask': { code: 'ERR_DTYPE', inputs: { context_mask: normals([2, 5], 1) } },
})

// Softmax does not see what is added to all keys alike.
gradients('perceiver', config, () => ({ ...inputs(), context_mask: keep() }), { of: 'y', zero: /key\.bias$/ })
gradients('perceiver', normalised, inputs, { of: 'y', zero: /k_norm\.bias$/, label: 'normalised' })

test('perceiver: published defaults', async (t) => {
  const m = await Module.create('perceiver', { num_hidden_layers: 1 })
  const shape = (name: string) => m.parameters().find((p) => p.name === name)?.shape
  t.deepEqual(shape('queries'), [1, 32, 768])
  t.deepEqual(shape('blip2qformer.encoder.layer.0.crossattention.attention.key.weight'), [768, 1408])
  t.deepEqual(shape('blip2qformer.encoder.layer.0.intermediate_query.dense.weight'), [3072, 768])
})

test('perceiver: padding does not matter, and a full mask is no mask', async (t) => {
  const m = await lively('perceiver', config)
  const x = inputs().context
  const run = async (context: Tensor, context_mask?: Tensor) =>
    output(await m.call('forward', { context, context_mask }, {}, { grad: false }), 'y').toFloat32()
  const moved = ops.add(
    x,
    ops.mul(
      normals([2, 5, 6], 9),
      ops.reshape(ops.addScalar(ops.neg(ops.cast(keep().to(defaultDevice()), 'f32')), 1), [2, 5, 1]),
    ),
  )
  compare(t, 'values at padding', await run(moved, keep()), await run(x, keep()), 1e-6)
  const all = whole(Array(10).fill(1), [2, 5])
  compare(t, 'a full mask', await run(x, all), await run(x), 1e-6)
  const none = await run(x, whole(Array(10).fill(0), [2, 5]))
  t.true(none.every(Number.isFinite), 'a row without context is finite')
})

test('perceiver: dropout draws from seed and step, and only in training', async (t) => {
  const m = await lively('perceiver', { ...config, hidden_dropout_prob: 0.2, attention_probs_dropout_prob: 0.2 })
  const run = async (training: boolean, seed: number, step: number) =>
    output(
      await m.call('forward', { ...inputs(), context_mask: keep() }, { training }, { seed, step }),
      'y',
    ).toFloat32()
  t.deepEqual(await run(false, 1, 1), await run(false, 2, 5))
  t.deepEqual(await run(true, 1, 1), await run(true, 1, 1))
  t.notDeepEqual(await run(true, 1, 1), await run(true, 1, 2))
  t.notDeepEqual(await run(true, 1, 1), await run(false, 1, 1))
})

test('perceiver: attention written out for dropout is the fused one', async (t) => {
  // A chance so small that nothing is dropped, but large enough to take the other path.
  const one = await lively('perceiver', { ...normalised, attention_probs_dropout_prob: 1e-9 })
  const two = await lively('perceiver', normalised)
  const x = { ...inputs(), context_mask: keep() }
  const [a, b] = await Promise.all(
    [one, two].map(async (m) => output(await m.call('forward', x, { training: true }), 'y')),
  )
  compare(t, 'values', (a as Tensor).toFloat32(), (b as Tensor).toFloat32(), 2e-6)
  const seed = normals([2, 3, 8], 4)
  await backward([a as Tensor, b as Tensor], [seed, seed])
  for (const { name } of one.parameters())
    compare(t, name, one.gradient(name)?.toFloat32() ?? [], two.gradient(name)?.toFloat32() ?? [], 1e-5)
})
