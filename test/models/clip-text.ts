import test from 'ava'
import { Module, output } from 'deem'
import { compare, gradients, lively, refusesCalls, refusesConfig, whole } from '../_harness/model.js'

const config = {
  vocab_size: 9,
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  max_position_embeddings: 5,
  hidden_act: 'gelu',
}
const inputs = () => ({ input_ids: whole([0, 1, 2, 3, 4, 5, 6, 7, 8, 8], [2, 5]) })

refusesConfig('clip_text', config, {
  'an unknown key': [{ hidden_actt: 'gelu' }, /hidden_actt.*hidden_act/],
  'another activation': [{ hidden_act: 'relu' }, /relu/],
  'heads that do not divide the width': [{ num_attention_heads: 3 }, /8.*3/],
})
refusesCalls('clip_text', config, inputs, {
  'an unknown method': { code: 'ERR_VALUE', method: 'encode' },
  'too many ids': { code: 'ERR_SHAPE', inputs: { input_ids: whole([0, 1, 2, 3, 4, 5], [1, 6]) } },
  'an id outside the vocabulary': { code: 'ERR_INDEX', inputs: { input_ids: whole([9], [1, 1]) } },
  'a flat row': { code: 'ERR_SHAPE', inputs: { input_ids: whole([1], [1]) } },
})
gradients('clip_text', config, inputs, { of: 'last_hidden_state', zero: /k_proj\.bias$/ })
gradients('clip_text', { ...config, hidden_act: 'quick_gelu' }, inputs, {
  of: 'last_hidden_state',
  zero: /k_proj\.bias$/,
  label: 'quick gelu',
})

test('clip text: later ids change nothing before them, and fewer ids are fine', async (t) => {
  const m = await lively('clip_text', config)
  const run = async (ids: number[]) =>
    output(await m.call('forward', { input_ids: whole(ids, [1, ids.length]) }), 'last_hidden_state').toFloat32()
  const whole5 = await run([1, 2, 3, 4, 5])
  compare(t, 'another end', (await run([1, 2, 3, 8, 0])).subarray(0, 24), whole5.subarray(0, 24), 1e-6)
  compare(t, 'a prefix', await run([1, 2, 3]), whole5.subarray(0, 24), 1e-6)
})

test('clip text: the same seed starts the same', async (t) => {
  const values = async (seed: number) => {
    const m = await Module.create('clip_text', config, { seed })
    return m.parameters().map((p) => [...m.read(p.name).toFloat32()])
  }
  t.deepEqual(await values(3), await values(3))
  t.notDeepEqual(await values(3), await values(4))
})
