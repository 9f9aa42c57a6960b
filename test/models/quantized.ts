// Whole models whose linear layers lie in few bits, or that compute in bf16 and f16.
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import {
  Deem,
  DeemError,
  image,
  loadDeem,
  loadModel,
  memory,
  type QuantizeOption,
  resetPeakMemory,
  saveDeem,
  tensor,
  text,
} from 'deem'
import { AdamW } from 'deem/train'
import { nano, nanoConfig, nanoWeights } from '../_harness/nano.js'

const picture = 'examples/pictures/fox.png'
const codeOf = (error: unknown) => (DeemError.isInstance(error) ? error.code : String(error))

/** Log-probabilities of yes and no, a caption, and a few denoising steps. */
async function says(options: { quantize?: QuantizeOption; dtype?: 'f32' | 'bf16' | 'f16' }) {
  using model = await loadModel('deem-nano', options)
  const scores = await model.score([image(picture), text('is there a fox?')], ['yes', 'no'])
  const { text: caption } = await model.generateText([image(picture)], { maxTokens: 40 })
  const painted = await model.generateImage('a blue background.', { steps: 4, seed: 3, guidance: 3 })
  return { scores, caption, painted: painted.data }
}
const worst = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((m, v, i) => Math.max(m, Math.abs(v - (b[i] as number))), 0)

const near: [string, Parameters<typeof says>[0], number, number][] = [
  ['int8', { quantize: 'int8' }, 0.1, 0.02],
  ['int8, asymmetric, groups of 128', { quantize: { bits: 8, group: 128, symmetric: false } }, 0.1, 0.02],
  ['int4', { quantize: 'int4' }, 0.6, 0.1],
  ['int4, asymmetric, groups of 64', { quantize: { bits: 4, group: 64, symmetric: false } }, 0.6, 0.1],
  ['int8 everywhere', { quantize: { bits: 8, include: ['*'] } }, 0.2, 0.1],
  ['int8 in bf16', { quantize: 'int8', dtype: 'bf16' }, 0.2, 0.05],
  ['bf16', { dtype: 'bf16' }, 0.15, 0.05],
  ['f16', { dtype: 'f16' }, 0.02, 0.01],
]
for (const [name, options, scoreLimit, pixelLimit] of near)
  test(`${name} says and paints nearly what f32 does`, async (t) => {
    const [want, got] = [await says({}), await says(options)]
    t.log(`scores ${worst(got.scores, want.scores).toFixed(4)}, pixels ${worst(got.painted, want.painted).toFixed(4)}`)
    t.true(worst(got.scores, want.scores) < scoreLimit)
    t.true(worst(got.painted, want.painted) < pixelLimit)
    t.true(got.caption.startsWith('a blue background'))
  })

test('codes are saved and loaded bit for bit, whatever the dtype of the rest', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'deem-quantized-'))
  try {
    const { model, tokenizer } = await loadDeem('deem-nano', { quantize: 'int4' })
    await saveDeem(model, folder, { dtype: 'bf16', ...(tokenizer && { tokenizer }) })
    const again = await loadDeem(folder)
    const codes = model.parameters().filter((p) => p.quantized)
    t.is(codes.length, 28)
    for (const { name } of codes) t.deepEqual(again.model.read(name).read(), model.read(name).read(), name)
    t.is((await t.throwsAsync(loadDeem(folder, { quantize: 'int8' }))) && 'thrown', 'thrown')
    const error = await t.throwsAsync(saveDeem(model, join(folder, 'llama'), { layout: 'llama' }))
    t.is(codeOf(error), 'ERR_WEIGHTS')
    const single = join(folder, 'single.safetensors')
    await model.save(single, { dtype: 'f16' })
    await again.model.load(single)
    for (const { name } of codes) t.deepEqual(again.model.read(name).read(), model.read(name).read(), name)
    using plain = await Deem.build(nanoConfig())
    t.is(codeOf(await t.throwsAsync(plain.load(single))), 'ERR_WEIGHTS')
    t.true(statSync(single).size > 0)
    for (const m of [model, again.model]) m.dispose()
  } finally {
    rmSync(folder, { recursive: true })
  }
})

// Serial: the counters are the process's.
test.serial('a model in few bits is small, and never was large', async (t) => {
  const config = { ...nanoConfig() }
  const llm = { ...(config['llm'] as object), intermediate_size: 16384 }
  const before = memory().current
  const plain = await Deem.build({ ...config, llm })
  const whole = memory().current - before
  plain.dispose()
  resetPeakMemory()
  const few = await Deem.build({ ...config, llm, quantization: { bits: 8, include: ['*.mlp.*'] } })
  const [small, peak] = [memory().current - before, memory().peak - before]
  few.dispose()
  t.log(`${whole} bytes, then ${small}, at most ${peak}`)
  // The allocator rounds up to its classes, so this is looser than 8.5 bits in place of 32.
  t.true(small < 0.45 * whole)
  t.true(peak < 0.7 * whole)
})

test('frozen weights in few bits are trained through', async (t) => {
  const { inputs } = await nano()
  const train = async (quantization?: object) => {
    const model = await Deem.build({ ...nanoConfig(), ...(quantization && { quantization }) })
    await model.load(nanoWeights)
    model.freeze('mm_decoder.')
    model.unfreeze('visual_tokenizer.perceiver_resampler')
    const y = await model.call('train', { ...inputs }, {}, { seed: 1 })
    await (y['loss'] as NonNullable<(typeof y)['loss']>).backward()
    const gradient = model.gradient('visual_tokenizer.perceiver_resampler.queries')?.toFloat32() ?? new Float32Array()
    const loss = y['loss']?.item() ?? Number.NaN
    using optimizer = new AdamW(model, { lr: 1e-3 })
    t.false(optimizer.parameters.some(({ name }) => name.includes('int8')))
    model.dispose()
    return { loss, gradient }
  }
  const [want, got] = [await train(), await train({ bits: 8 })]
  t.true(Math.abs(got.loss / want.loss - 1) < 0.01)
  const dot = (a: Float32Array, b: Float32Array) => a.reduce((s, v, i) => s + v * (b[i] as number), 0)
  const cosine =
    dot(want.gradient, got.gradient) / Math.sqrt(dot(want.gradient, want.gradient) * dot(got.gradient, got.gradient))
  t.log(`cosine of the gradients ${cosine}`)
  t.true(cosine > 0.99)
})

test('settings and values that do not fit are refused', async (t) => {
  const bad: Record<string, [object, string, RegExp]> = {
    'three bits': [{ bits: 3 }, 'ERR_VALUE', /bits/],
    'no bits': [{ group: 32 }, 'ERR_CONFIG', /bits/],
    'an unknown key': [{ bits: 4, grup: 32 }, 'ERR_CONFIG', /group/],
    'names of nothing': [{ bits: 4, include: ['*.nowhere.*'] }, 'ERR_CONFIG', /nowhere/],
    'a head, whose rows are taken apart': [{ bits: 4, include: ['text_decoder.head.weight'] }, 'ERR_CONFIG', /head/],
  }
  for (const [name, [quantization, code, says]] of Object.entries(bad)) {
    const error = await t.throwsAsync(Deem.build({ ...nanoConfig(), quantization }), undefined, name)
    t.is(codeOf(error), code, name)
    t.regex(error?.message ?? '', says, name)
  }
  for (const quantize of ['int2', { bits: 8, size: 3 }] as unknown as QuantizeOption[])
    t.is(codeOf(await t.throwsAsync(loadDeem('deem-nano', { quantize }))), 'ERR_CONFIG')
  using model = await Deem.build({ ...nanoConfig(), quantization: { bits: 4 } })
  const [one] = model.parameters().filter((p) => p.quantized)
  const { name, shape } = one?.quantized ?? { name: '', shape: [] }
  const before = model.read(one?.name ?? '').read()
  for (const value of [
    tensor(new Float32Array(4), [2, 2]),
    tensor(new Float32Array((shape[0] as number) * (shape[1] as number)).fill(Number.NaN), shape),
  ])
    t.regex(codeOf(t.throws(() => model.assign(name, value))), /ERR_(WEIGHTS|VALUE)/)
  t.is(codeOf(t.throws(() => model.parameter(name))), 'ERR_WEIGHTS')
  t.deepEqual(model.read(one?.name ?? '').read(), before)
})
