// Weights of linear layers that are kept a second time, in the order that products of many rows read.
import test from 'ava'
import { backward, loadDeem, Module, memory, ops, output, type Tensor, tensor, tidy } from 'deem'
import { AdamW } from 'deem/train'
import { normals } from '../_harness/model.js'

// Widths that fill no panel, of columns or of rows.
const config = {
  num_queries: 77,
  hidden_size: 72,
  encoder_hidden_size: 50,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  cross_attention_frequency: 2,
  intermediate_size: 230, // whose panels are enough for two threads
  hidden_dropout_prob: 0,
  attention_probs_dropout_prob: 0,
}
const built = (dtype: 'f32' | 'bf16' = 'bf16') => Module.create('perceiver', config, { seed: 5, dtype, device: 'cpu' })
const narrow = (shape: number[], seed: number) => tidy(() => ops.cast(normals(shape, seed).to('cpu'), 'bf16'))
const context = () => narrow([1, 40, 50], 1)
const forward = async (m: Module, x: Tensor) => {
  using y = output(await m.call('forward', { context: x }, {}, { grad: false }), 'y')
  return y.toFloat32()
}
const query = 'blip2qformer.encoder.layer.0.attention.attention.query.weight'
const distance = (a: Float32Array, b: Float32Array) =>
  Math.sqrt(a.reduce((sum, v, i) => sum + (v - (b[i] as number)) ** 2, 0) / b.reduce((sum, v) => sum + v * v, 0))
const kept = (m: Module) => m.parameters().filter((p) => p.prepacked)

/** Machines that gain nothing keep nothing. */
async function gains(): Promise<boolean> {
  using m = await built()
  return (await m.prepack()) > 0
}

test.serial('prepack: results stay what they are but for rounding, for linear weights alone', async (t) => {
  using m = await built()
  const x = context()
  const plain = await forward(m, x)
  const linear = m.parameters().filter((p) => p.linear)
  t.true(linear.length > 0 && linear.every((p) => p.shape.length === 2 && !p.norm && !p.buffer))
  const before = memory().current
  const count = await m.prepack()
  t.is(count, (await gains()) ? linear.length : 0)
  t.is(kept(m).length, count)
  const during = memory().current
  t.is(during > before, count > 0)
  t.true(distance(await forward(m, x), plain) < 0.01)
  await m.dropPrepacked()
  t.is(kept(m).length, 0)
  t.is(memory().current < during, count > 0)
  t.deepEqual(await forward(m, x), plain)
})

test.serial('prepack: f32 and names that match nothing keep nothing', async (t) => {
  using wide = await built('f32')
  t.is(await wide.prepack(), 0)
  using m = await built()
  t.is(await m.prepack('nothing of that name'), 0)
  await t.throwsAsync(() => m.prepack(3 as never), { code: 'ERR_VALUE' })
  m.dispose()
  await t.throwsAsync(async () => m.prepack(), { code: 'ERR_DISPOSED' })
})

test.serial('prepack: who writes a weight makes it an ordinary one', async (t) => {
  using m = await built()
  if (!(await m.prepack())) return t.pass()
  const all = kept(m).length
  const other = narrow([72, 72], 3)
  m.assign(query, other)
  t.is(kept(m).length, all - 1)
  t.is(await m.prepack(query), 1)
  using plain = await built()
  plain.assign(query, other)
  t.true(distance(await forward(m, context()), await forward(plain, context())) < 0.01)

  // A step of the optimizer, of some weights.
  m.setTrainable(/./, false)
  m.setTrainable(/layer\.1\..*query\.dense\.weight/, true)
  const trained = m.parameters().filter((p) => p.trainable)
  t.true(trained.length > 0 && trained.every((p) => p.prepacked))
  using optimizer = new AdamW(m, { lr: 0.1 })
  await backward([output(await m.call('forward', { context: context() }), 'y')], [narrow([1, 77, 72], 4)])
  await optimizer.step()
  t.deepEqual(
    m
      .parameters()
      .filter((p) => p.linear && !p.prepacked)
      .map((p) => p.name),
    trained.map((p) => p.name),
  )
})

test.serial('prepack: matching weights of a model that is loaded', async (t) => {
  const { model } = await loadDeem('deem-nano', { dtype: 'bf16', device: 'cpu', prepack: /mlp/ })
  using m = model
  const wanted = m.parameters().filter((p) => p.linear && /mlp/.test(p.name))
  t.true(wanted.length > 0)
  t.deepEqual(
    kept(m).map((p) => p.name),
    (await gains()) ? wanted.map((p) => p.name) : [],
  )
})

for (const rows of [2, 9, 33, 1030])
  test.serial(`prepack: ${rows} rows, of which some are not finite`, async (t) => {
    using m = await built()
    using w = m.parameter(query)
    using x = tensor(
      Float32Array.from({ length: rows * 72 }, (_, i) =>
        Math.floor(i / 72) % 2 ? Number.POSITIVE_INFINITY : (i % 7) - 3,
      ),
      [rows, 72],
    )
    const product = () => tidy(() => ops.linear(ops.cast(x, 'bf16'), w, null, 'none')).toFloat32()
    const plain = product()
    await m.prepack(query)
    const packed = product()
    for (const [i, v] of packed.entries())
      if (Math.floor(i / 72) % 2) t.false(Number.isFinite(v))
      else t.true(Math.abs(v - (plain[i] as number)) <= 0.01 * Math.abs(plain[i] as number) + 1e-3)
  })
