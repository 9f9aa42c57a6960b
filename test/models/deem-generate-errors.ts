// Questions and paintings the whole model refuses, with which code and which words.
import test from 'ava'
import { type DeemTrainInputs, type ErrorCode, type GenerateTextOptions, memory } from 'deem'
import { type Bad, codeOf, floats, put, spoiled } from '../_harness/bad-calls.js'
import { collect } from '../_harness/memory.js'
import { whole } from '../_harness/model.js'
import { nano, prompts } from '../_harness/nano.js'

/** What is opened; the other methods are called. */
const sessions = ['text', 'picture', 'reconstruction']

const generation: Record<string, Bad & { method: string }> = {
  'text: padding on the right': {
    method: 'text',
    code: 'ERR_VALUE',
    says: /padded on the left, but row 1 ends in padding/,
    inputs: (good) => ({ text_ids: good.text_ids, attention_mask: good.attention_mask }),
  },
  'text: an empty prompt': {
    method: 'text',
    code: 'ERR_SHAPE',
    says: /at least one id/,
    inputs: () => ({ text_ids: whole([], [2, 0]), attention_mask: whole([], [2, 0]) }),
  },
  'text: a floating mask': {
    method: 'text',
    code: 'ERR_DTYPE',
    says: /attention_mask must be i64/,
    inputs: put('attention_mask', () => floats(2, 39)),
  },
  'text: an option of the painter': {
    method: 'text',
    code: 'ERR_CONFIG',
    says: /text\.steps/,
    options: { steps: 3 },
  },
  'text: a pixel that is no number': {
    method: 'text',
    code: 'ERR_VALUE',
    says: /not finite/,
    inputs: spoiled('image_tensors', Number.NaN),
  },
  'paint: nothing said': { method: 'picture', code: 'ERR_VALUE', says: /'which' is missing/ },
  'paint: a picture that is not there': {
    method: 'picture',
    code: 'ERR_INDEX',
    says: /which holds 4 but there are 4 images/,
    inputs: put('which', () => whole([0, 4], [2])),
  },
  'paint: a picture before the first': {
    method: 'picture',
    code: 'ERR_INDEX',
    says: /which holds -1/,
    inputs: put('which', () => whole([-1], [1])),
  },
  'paint: a table of pictures': {
    method: 'picture',
    code: 'ERR_SHAPE',
    says: /which must be \[k\]/,
    inputs: put('which', () => whole([1], [1, 1])),
  },
  'paint: floating pictures': {
    method: 'picture',
    code: 'ERR_DTYPE',
    says: /which must be i64/,
    inputs: put('which', () => floats(1)),
  },
  'paint: no picture in the rows': {
    method: 'picture',
    code: 'ERR_VALUE',
    says: /no image to paint/,
    inputs: () => ({
      text_ids: whole([1, 5], [1, 2]),
      attention_mask: whole([1, 1], [1, 2]),
      num_image_per_seq: whole([0], [1]),
      which: whole([0], [1]),
    }),
  },
  'conditions: no picture in the rows': {
    method: 'conditions',
    code: 'ERR_VALUE',
    says: /hold no image/,
    inputs: () => ({
      text_ids: whole([1, 5], [1, 2]),
      attention_mask: whole([1, 1], [1, 2]),
      num_image_per_seq: whole([0], [1]),
    }),
  },
  'paint: noise of another shape': {
    method: 'picture',
    code: 'ERR_SHAPE',
    says: /latent must be \[1, 8, 8, 4\] but has shape \[1, 4, 8, 8\]/,
    inputs: () => ({ which: whole([1], [1]), latent: floats(1, 4, 8, 8) }),
  },
  'paint: noise of no shape': {
    method: 'picture',
    code: 'ERR_SHAPE',
    says: /latent must be/,
    inputs: () => ({ which: whole([1], [1]), latent: floats() }),
  },
  'paint: no steps': {
    method: 'picture',
    code: 'ERR_CONFIG',
    says: /steps' must be at least 1/,
    inputs: put('which', () => whole([1], [1])),
    options: { steps: 0 },
  },
  'paint: a guidance that is no number': {
    method: 'picture',
    code: 'ERR_CONFIG',
    says: /'guidance' must be a finite number but is NaN/,
    options: { guidance: Number.NaN },
  },
  'paint: more steps than the schedule has': {
    method: 'picture',
    code: 'ERR_VALUE',
    says: /1001/,
    inputs: put('which', () => whole([1], [1])),
    options: { steps: 1001 },
  },
  'reconstruct: pictures of another size': {
    method: 'reconstruction',
    code: 'ERR_SHAPE',
    says: /image_tensors must be \[2, 64, 64, 3\]/,
    inputs: put('image_tensors', () => floats(2, 32, 32, 3)),
  },
  'reconstruct: a mask too few': {
    method: 'reconstruction',
    code: 'ERR_SHAPE',
    says: /image_tensors_mask must be \[4, 64, 64, 1\]/,
    inputs: put('image_tensors_mask', () => floats(3, 64, 64, 1)),
  },
  'see: nothing to look at': {
    method: 'see',
    code: 'ERR_VALUE',
    says: /'image_tensors' is missing/,
    inputs: put('image_tensors', () => undefined),
  },
  'see: one picture without a batch': {
    method: 'see',
    code: 'ERR_SHAPE',
    says: /image_tensors must be/,
    inputs: put('image_tensors', () => floats(64, 64, 3)),
  },
  'see: an option': { method: 'see', code: 'ERR_CONFIG', says: /see\.details/, options: { details: true } },
}

test('generation: each mistake has its code, and the next answer is the same', async (t) => {
  const { model, inputs } = await nano()
  const good = prompts(inputs)
  const answer = async () => {
    const { ids } = await model.generateText(good, { maxNewTokens: 4 })
    using picture = await model.paint({ ...good, which: whole([1], [1]) }, { steps: 2, seed: 1 })
    return [ids, picture.read()]
  }
  const want = await answer()
  for (const [name, { method, code, says, inputs: change, options }] of Object.entries(generation)) {
    const x = { ...good, ...change?.({ ...inputs, ...good } as DeemTrainInputs) }
    // Only the pictures of the batch are floating: the rest of it is padded on the other side.
    if (name.startsWith('text: padding'))
      Object.assign(x, { text_ids: inputs.text_ids, attention_mask: inputs.attention_mask })
    const run = sessions.includes(method) ? model.open(method, x, options) : model.call(method, x, options)
    const error = await t.throwsAsync(run, undefined, name)
    t.is(codeOf(error), code, `${name}: ${error?.message}`)
    t.regex(error?.message ?? '', says, name)
  }
  t.deepEqual(await answer(), want)
})

test('generation: options that make no sense, and more text than there are positions', async (t) => {
  const { model, inputs } = await nano()
  const good = prompts(inputs)
  const cases: [ErrorCode, RegExp, GenerateTextOptions][] = [
    ['ERR_CONFIG', /maxNewTokens must be a whole number of at least 1 but is 0/, { maxNewTokens: 0 }],
    ['ERR_CONFIG', /maxNewTokens/, { maxNewTokens: 1.5 }],
    ['ERR_CONFIG', /minLength/, { minLength: -1 }],
    ['ERR_CONFIG', /temperature' must be at least 0/, { temperature: -1 }],
    ['ERR_CONFIG', /temperature' must be a finite number/, { temperature: Number.NaN }],
    ['ERR_CONFIG', /top_p' must be above 0/, { temperature: 1, topP: 0 }],
    ['ERR_CONFIG', /min_p' must be in 0..1/, { temperature: 1, minP: 2 }],
    ['ERR_CONFIG', /top_k/, { temperature: 1, topK: 0.5 }],
    ['ERR_CONFIG', /repetition_penalty' must be positive/, { repetitionPenalty: 0 }],
    ['ERR_CONFIG', /seeds' must have a seed for each of 2 rows but has 1/, { temperature: 1, seed: [3] }],
    ['ERR_CONFIG', /alternatives/, { alternatives: 1000 }],
    ['ERR_CONFIG', /numReturnSequences must be 1..3 but is 4/, { numBeams: 3, numReturnSequences: 4 }],
    ['ERR_INDEX', /id 9999 is outside/, { logitBias: new Map([[9999, 1]]) }],
    ['ERR_INDEX', /id -1 is outside/, { allowed: () => [-1] }],
    ['ERR_VALUE', /the rules leave no id/, { allowed: () => [2], minLength: 9 }],
    ['ERR_VALUE', /max_position_embeddings is 256/, { maxNewTokens: 300, minLength: 300 }],
  ]
  await collect()
  const before = memory().current
  for (const [code, says, options] of cases) {
    const error = await t.throwsAsync(model.generateText(good, options), undefined, String(says))
    t.is(codeOf(error), code, error?.message)
    t.regex(error?.message ?? '', says)
  }
  await t.throwsAsync(model.score(good, [[5]]), { code: 'ERR_SHAPE', message: /one prompt but got 2/ })
  await collect()
  t.true(memory().current <= before, 'sessions that failed left nothing')
})
