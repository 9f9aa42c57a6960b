// Questions and paintings the whole model refuses, with which code and which words.
import test from 'ava'
import type { DeemTrainInputs } from 'deem'
import { type Bad, codeOf, floats, put, spoiled } from '../_harness/bad-calls.js'
import { whole } from '../_harness/model.js'
import { nano, prompts } from '../_harness/nano.js'

const generation: Record<string, Bad & { method: string }> = {
  'text: padding on the right': {
    method: 'generate_text',
    code: 'ERR_VALUE',
    says: /padded on the left, but row 1 ends in padding/,
    inputs: (good) => ({ text_ids: good.text_ids, attention_mask: good.attention_mask }),
  },
  'text: an empty prompt': {
    method: 'generate_text',
    code: 'ERR_SHAPE',
    says: /at least one id/,
    inputs: () => ({ text_ids: whole([], [2, 0]), attention_mask: whole([], [2, 0]) }),
  },
  'text: a floating mask': {
    method: 'generate_text',
    code: 'ERR_DTYPE',
    says: /attention_mask must be i64/,
    inputs: put('attention_mask', () => floats(2, 39)),
  },
  'text: no new ids': {
    method: 'generate_text',
    code: 'ERR_CONFIG',
    says: /at least 1/,
    options: { max_new_tokens: 0 },
  },
  'text: half an id': {
    method: 'generate_text',
    code: 'ERR_CONFIG',
    says: /integer/,
    options: { max_new_tokens: 1.5 },
  },
  'text: more than there are positions': {
    method: 'generate_text',
    code: 'ERR_VALUE',
    says: /max_position_embeddings is 256/,
    options: { max_new_tokens: 300, min_length: 300 },
  },
  'text: an option of the painter': {
    method: 'generate_text',
    code: 'ERR_CONFIG',
    says: /generate_text\.steps/,
    options: { steps: 3 },
  },
  'text: a pixel that is no number': {
    method: 'generate_text',
    code: 'ERR_VALUE',
    says: /not finite/,
    inputs: spoiled('image_tensors', Number.NaN),
  },
  'paint: nothing said': { method: 'paint', code: 'ERR_VALUE', says: /'which' is missing/ },
  'paint: a picture that is not there': {
    method: 'paint',
    code: 'ERR_INDEX',
    says: /which holds 4 but there are 4 images/,
    inputs: put('which', () => whole([0, 4], [2])),
  },
  'paint: a picture before the first': {
    method: 'paint',
    code: 'ERR_INDEX',
    says: /which holds -1/,
    inputs: put('which', () => whole([-1], [1])),
  },
  'paint: a table of pictures': {
    method: 'paint',
    code: 'ERR_SHAPE',
    says: /which must be \[k\]/,
    inputs: put('which', () => whole([1], [1, 1])),
  },
  'paint: floating pictures': {
    method: 'paint',
    code: 'ERR_DTYPE',
    says: /which must be i64/,
    inputs: put('which', () => floats(1)),
  },
  'paint: no picture in the rows': {
    method: 'paint',
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
    method: 'paint',
    code: 'ERR_SHAPE',
    says: /latent must be \[1, 8, 8, 4\] but has shape \[1, 4, 8, 8\]/,
    inputs: () => ({ which: whole([1], [1]), latent: floats(1, 4, 8, 8) }),
  },
  'paint: noise of no shape': {
    method: 'paint',
    code: 'ERR_SHAPE',
    says: /latent must be/,
    inputs: () => ({ which: whole([1], [1]), latent: floats() }),
  },
  'paint: no steps': {
    method: 'paint',
    code: 'ERR_CONFIG',
    says: /steps' must be at least 1/,
    inputs: put('which', () => whole([1], [1])),
    options: { steps: 0 },
  },
  'paint: a guidance that is no number': {
    method: 'paint',
    code: 'ERR_CONFIG',
    says: /'guidance' must be a finite number but is NaN/,
    options: { guidance: Number.NaN },
  },
  'paint: more steps than the schedule has': {
    method: 'paint',
    code: 'ERR_VALUE',
    says: /1001/,
    inputs: put('which', () => whole([1], [1])),
    options: { steps: 1001 },
  },
  'reconstruct: pictures of another size': {
    method: 'reconstruct',
    code: 'ERR_SHAPE',
    says: /image_tensors must be \[2, 64, 64, 3\]/,
    inputs: put('image_tensors', () => floats(2, 32, 32, 3)),
  },
  'reconstruct: a mask too few': {
    method: 'reconstruct',
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
    const y = await model.call('generate_text', good, { max_new_tokens: 4 })
    const p = await model.call('paint', { ...good, which: whole([1], [1]) }, { steps: 2 }, { seed: 1 })
    return [...Object.values(y), ...Object.values(p)].map((x) => x.read())
  }
  const want = await answer()
  for (const [name, { method, code, says, inputs: change, options }] of Object.entries(generation)) {
    const x = { ...good, ...change?.({ ...inputs, ...good } as DeemTrainInputs) }
    // Only the pictures of the batch are floating: the rest of it is padded on the other side.
    if (name.startsWith('text: padding'))
      Object.assign(x, { text_ids: inputs.text_ids, attention_mask: inputs.attention_mask })
    const error = await t.throwsAsync(model.call(method, x, options), undefined, name)
    t.is(codeOf(error), code, `${name}: ${error?.message}`)
    t.regex(error?.message ?? '', says, name)
  }
  t.deepEqual(await answer(), want)
})
