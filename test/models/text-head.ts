import test from 'ava'
import { backward, Module, ops, output, type Tensor } from 'deem'
import { compare, gradients, lively, normals, refusesCalls, refusesConfig } from '../_harness/model.js'

const config = { hidden_size: 6, txt_vocab_size: 11, orig_txt_vocab_size: 8 }
const inputs = () => ({ hidden: normals([2, 3, 6], 1) })

refusesConfig('text_head', config, {
  'an unknown key': [{ vocab_size: 11 }, /vocab_size.*txt_vocab_size/],
  'a missing key': [{ hidden_size: undefined }, /hidden_size/],
  'fewer ids than the original ones': [{ txt_vocab_size: 7 }, /7.*8/],
})
refusesCalls('text_head', config, inputs, {
  'an unknown method': { code: 'ERR_VALUE', method: 'logits' },
  'states of another width': { code: 'ERR_SHAPE', inputs: { hidden: normals([2, 3, 5], 1) } },
  'no states': { code: 'ERR_VALUE', inputs: { hidden: undefined } },
})
gradients('text_head', config, inputs, { of: 'logits' })
gradients('text_head', { ...config, txt_vocab_size: 8 }, inputs, { of: 'logits', label: 'no added ids' })

test('text head: added ids get both heads, others one', async (t) => {
  const m = await lively('text_head', config)
  const { hidden } = inputs()
  const part = (name: string) => ops.linear(hidden, m.parameter(`${name}.weight`), m.parameter(`${name}.bias`), 'none')
  const head = part('head')
  const want = ops.cat([ops.slice(head, 2, 0, 8), ops.add(ops.slice(head, 2, 8, 11), part('head_new'))], 2)
  compare(t, 'logits', output(await m.call('forward', { hidden }), 'logits').toFloat32(), want.toFloat32(), 1e-6)
})

test('text head: starts as published', async (t) => {
  const m = await Module.create('text_head', config)
  const values = (name: string) => [...m.read(name).toFloat32()]
  t.deepEqual(values('head.bias'), [...Array(8).fill(0), ...Array(3).fill(-100)])
  t.deepEqual(values('head_new.bias'), Array(3).fill(95))
  t.true(
    values('head.weight')
      .slice(0, 48)
      .every((v) => v !== 0),
  )
  t.true(
    values('head.weight')
      .slice(48)
      .every((v) => v === 0),
  )
})

test('text head: without added ids there is one head', async (t) => {
  const m = await Module.create('text_head', { ...config, txt_vocab_size: 8 })
  t.deepEqual(
    m.parameters().map((p) => p.name),
    ['head.weight', 'head.bias'],
  )
})

test('text head: with the first head frozen only the second one learns', async (t) => {
  const m = await lively('text_head', config)
  m.freeze(/^head\./)
  const y = output(await m.call('forward', inputs()), 'logits')
  await backward([y], [normals(y.shape, 2)])
  t.is(m.gradient('head.weight'), null)
  t.true(ops.norm(m.gradient('head_new.weight') as Tensor) > 0)
})
