// Training steps the whole model refuses, with which code and which words, and that nothing of it leaves a trace.
import { readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { type Deem, ops } from 'deem'
import { AdamW } from 'deem/train'
import { type Bad, cast, codeOf, floats, ids, put, spoiled, withId } from '../_harness/bad-calls.js'
import { whole } from '../_harness/model.js'
import { nano } from '../_harness/nano.js'

const training: Record<string, Bad> = {
  'no ids': { code: 'ERR_VALUE', says: /'text_ids' is missing/, inputs: put('text_ids', () => undefined) },
  'no mask of the ids': {
    code: 'ERR_VALUE',
    says: /'attention_mask' is missing/,
    inputs: put('attention_mask', () => undefined),
  },
  'no counts': {
    code: 'ERR_VALUE',
    says: /'num_image_per_seq' is missing/,
    inputs: put('num_image_per_seq', () => undefined),
  },
  'no pictures': {
    code: 'ERR_VALUE',
    says: /'image_tensors' is missing/,
    inputs: put('image_tensors', () => undefined),
  },
  'no pictures for the denoiser': {
    code: 'ERR_VALUE',
    says: /'image_tensors_dec' is missing/,
    inputs: put('image_tensors_dec', () => undefined),
  },
  'an unknown input': {
    code: 'ERR_VALUE',
    says: /no input 'image_tensor'; the nearest name is 'image_tensors'/,
    inputs: (good) => ({ image_tensor: good.image_tensors }),
  },
  'ids in a row': {
    code: 'ERR_SHAPE',
    says: /text_ids must be \[rows, length\]/,
    inputs: put('text_ids', () => whole([1], [1])),
  },
  'floating ids': { code: 'ERR_DTYPE', says: /text_ids must be i64 but is f32/, inputs: cast('text_ids', 'f32') },
  'short ids': { code: 'ERR_DTYPE', says: /text_ids must be i64 but is i32/, inputs: cast('text_ids', 'i32') },
  'an id beyond the vocabulary': { code: 'ERR_INDEX', says: /518 rows but one is 518/, inputs: withId(3, 518) },
  'a negative id': { code: 'ERR_INDEX', says: /518 rows but one is -1/, inputs: withId(3, -1) },
  'an id far out': { code: 'ERR_INDEX', says: /one is -9007199254740991/, inputs: withId(3, -Number.MAX_SAFE_INTEGER) },
  'a slot without a start': { code: 'ERR_VALUE', says: /row 0 has an image slot at column 3/, inputs: withId(3, 513) },
  'a picture with a slot too few': {
    code: 'ERR_VALUE',
    says: /column 5 of row 0 must be followed by 5 image slots but 4 follow/,
    inputs: withId(10, 7),
  },
  // As many slots as ever, but not each picture its own.
  'a slot in the next picture': {
    code: 'ERR_VALUE',
    says: /must be followed by 5 image slots but 4 follow/,
    inputs: (good) => {
      const row = ids(good)
      row.splice(row.indexOf(513), 1) // out of the first picture
      row.splice(row.indexOf(512, 12) + 1, 0, 513) // into the second
      return { text_ids: whole(row, [2, 39]) }
    },
  },
  'zero columns': {
    code: 'ERR_SHAPE',
    says: /./,
    inputs: () => ({
      text_ids: whole([], [2, 0]),
      attention_mask: whole([], [2, 0]),
      num_image_per_seq: whole([0, 0], [2]),
      nearest_bos_idxs: whole([], [0]),
    }),
  },
  'rows that are too long': {
    code: 'ERR_VALUE',
    says: /max_position_embeddings is 256 but the sequence has 257/,
    inputs: () => ({
      text_ids: whole(Array(257).fill(7), [1, 257]),
      attention_mask: whole(Array(257).fill(1), [1, 257]),
      num_image_per_seq: whole([0], [1]),
      nearest_bos_idxs: whole([], [0]),
    }),
  },
  'a context that is too long': {
    code: 'ERR_SHAPE',
    says: /context of 72 positions exceeds seq_len 64/,
    inputs: (good) => ({
      ...good,
      text_ids: whole([1, ...Array(70).fill(7), 512, ...Array(5).fill(513)], [1, 77]),
      attention_mask: whole(Array(77).fill(1), [1, 77]),
      num_image_per_seq: whole([1], [1]),
      nearest_bos_idxs: whole([0], [1]),
      ...Object.fromEntries(
        Object.entries(good).flatMap(([name, x]) =>
          x?.shape[0] === 4 && x.shape.length !== 1 ? [[name, ops.slice(x, 0, 0, 1)]] : [],
        ),
      ),
      ...Object.fromEntries(['sniffer_t', 'img_t', 'uncond_rand'].map((name) => [name, undefined])),
    }),
  },
  'a mask of another length': {
    code: 'ERR_SHAPE',
    says: /keep must be \[2, 39\]|attention_mask must be \[2, 39\]/,
    inputs: put('attention_mask', () => whole(Array(76).fill(1), [2, 38])),
  },
  'a floating mask of the ids': { code: 'ERR_DTYPE', says: /is f32/, inputs: cast('attention_mask', 'f32') },
  'counts that do not match': {
    code: 'ERR_VALUE',
    says: /row 0 has 3 start-of-image tokens but num_image_per_seq says 2/,
    inputs: put('num_image_per_seq', () => whole([2, 2], [2])),
  },
  'counts for another number of rows': {
    code: 'ERR_SHAPE',
    says: /num_image_per_seq must be \[2\]/,
    inputs: put('num_image_per_seq', () => whole([3, 1, 0], [3])),
  },
  'floating counts': {
    code: 'ERR_DTYPE',
    says: /num_image_per_seq must be i64/,
    inputs: cast('num_image_per_seq', 'f32'),
  },
  'starts for another number of pictures': {
    code: 'ERR_SHAPE',
    says: /nearest_bos_idxs must be \[4\]/,
    inputs: put('nearest_bos_idxs', () => whole([0, 0, 0], [3])),
  },
  'a document that starts after its picture': {
    code: 'ERR_INDEX',
    says: /nearest_bos_idxs\[2\] is 31 but the image starts at column 30/,
    inputs: put('nearest_bos_idxs', () => whole([0, 0, 31, 0], [4])),
  },
  'a document that starts before its row': {
    code: 'ERR_INDEX',
    says: /nearest_bos_idxs\[3\] is -1/,
    inputs: put('nearest_bos_idxs', () => whole([0, 0, 26, -1], [4])),
  },
  'pictures of another size': {
    code: 'ERR_SHAPE',
    says: /image_tensors must be \[4, 64, 64, 3\] but has shape \[4, 32, 32, 3\]/,
    inputs: put('image_tensors', () => floats(4, 32, 32, 3)),
  },
  'channels first': {
    code: 'ERR_SHAPE',
    says: /image_tensors must be \[4, 64, 64, 3\]/,
    inputs: put('image_tensors', () => floats(4, 3, 64, 64)),
  },
  'a picture too few': {
    code: 'ERR_SHAPE',
    says: /image_tensors must be \[4, 64, 64, 3\] but has shape \[3/,
    inputs: put('image_tensors', () => floats(3, 64, 64, 3)),
  },
  'a scalar for pictures': {
    code: 'ERR_SHAPE',
    says: /image_tensors must be/,
    inputs: put('image_tensors', () => floats()),
  },
  'bytes for pictures': { code: 'ERR_DTYPE', says: /must be floating but is u8/, inputs: cast('image_tensors', 'u8') },
  'pictures of another size for the denoiser': {
    code: 'ERR_SHAPE',
    says: /image_tensors_dec must be \[4, 64, 64, 3\]/,
    inputs: put('image_tensors_dec', () => floats(4, 128, 128, 3)),
  },
  'whole numbers for the denoiser': {
    code: 'ERR_DTYPE',
    says: /image_tensors_dec must be floating/,
    inputs: cast('image_tensors_dec', 'i64'),
  },
  'a mask of another size': {
    code: 'ERR_SHAPE',
    says: /image_tensors_mask must be \[4, 64, 64, 1\]/,
    inputs: put('image_tensors_mask', () => floats(4, 32, 32, 1)),
  },
  'a mask of bytes': {
    code: 'ERR_DTYPE',
    says: /image_tensors_mask must be floating/,
    inputs: cast('image_tensors_mask', 'u8'),
  },
  'a pixel that is no number': {
    code: 'ERR_VALUE',
    says: /image_tensors hold values that are not finite/,
    inputs: spoiled('image_tensors', Number.NaN),
  },
  'a pixel without end': {
    code: 'ERR_VALUE',
    says: /image_tensors hold values that are not finite/,
    inputs: spoiled('image_tensors', Number.NEGATIVE_INFINITY),
  },
  'a pixel for the denoiser that is no number': {
    code: 'ERR_VALUE',
    says: /image_tensors_dec hold values that are not finite/,
    inputs: spoiled('image_tensors_dec', Number.NaN),
  },
  'a mask that is no number': {
    code: 'ERR_VALUE',
    says: /image_tensors_mask hold values that are not finite/,
    inputs: spoiled('image_tensors_mask', Number.NaN),
  },
  'noise that is no number': { code: 'ERR_VALUE', says: /the loss is -?nan/, inputs: spoiled('img_noise', Number.NaN) },
  'labels of another length': {
    code: 'ERR_SHAPE',
    says: /labels must be \[2, 38\]/,
    inputs: put('labels', () => whole(Array(78).fill(3), [2, 39])),
  },
  'labels beyond the vocabulary': {
    code: 'ERR_INDEX',
    says: /labels must be in 0\.\.517 or -100 but one is 518/,
    inputs: put('labels', () => whole(Array(76).fill(518), [2, 38])),
  },
  'negative labels': {
    code: 'ERR_INDEX',
    says: /but one is -99/,
    inputs: put('labels', () => whole(Array(76).fill(-99), [2, 38])),
  },
  'floating labels': { code: 'ERR_DTYPE', says: /labels must be i64/, inputs: put('labels', () => floats(2, 38)) },
  'prompt offsets for another number of rows': {
    code: 'ERR_SHAPE',
    says: /prompt_offset must be \[2\]/,
    inputs: put('prompt_offset', () => whole([1], [1])),
  },
  'a negative prompt offset': {
    code: 'ERR_VALUE',
    says: /prompt_offset\[1\] must not be negative but is -2/,
    inputs: put('prompt_offset', () => whole([0, -2], [2])),
  },
  'a timestep beyond the schedule': {
    code: 'ERR_INDEX',
    says: /timestep 1000 is outside 0\.\.999/,
    inputs: put('img_t', () => whole([0, 1, 2, 1000], [4])),
  },
  'a negative timestep': {
    code: 'ERR_INDEX',
    says: /is outside 0\.\.999/,
    inputs: put('sniffer_t', () => whole([0, 1, 2, -1000], [4])),
  },
  'floating timesteps': { code: 'ERR_DTYPE', says: /img_t must be i64/, inputs: put('img_t', () => floats(4)) },
  'too few timesteps': { code: 'ERR_SHAPE', says: /img_t must be \[4\]/, inputs: put('img_t', () => whole([0], [1])) },
  'noise with channels first': {
    code: 'ERR_SHAPE',
    says: /img_noise must be \[4, 8, 8, 4\]/,
    inputs: put('img_noise', () => floats(4, 4, 8, 8)),
  },
  'a whole mask of losses': {
    code: 'ERR_DTYPE',
    says: /image_loss_mask must be f32/,
    inputs: put('image_loss_mask', () => whole([0, 1, 1, 1], [4])),
  },
  'an unknown option': {
    code: 'ERR_CONFIG',
    says: /train\.feedbck'; the nearest known key is 'feedback'/,
    options: { feedbck: true },
  },
  'an option of another type': {
    code: 'ERR_CONFIG',
    says: /train\.training' must be true or false/,
    options: { training: 1 },
  },
  'a weight that is no number': {
    code: 'ERR_CONFIG',
    says: /train\.weight_txt' must be a number/,
    options: { weight_txt: '1' },
  },
  // JSON would make it null, and null means the default.
  'a weight that is not finite': {
    code: 'ERR_CONFIG',
    says: /'weight_img' must be a finite number but is Infinity/,
    options: { weight_img: Number.POSITIVE_INFINITY },
  },
  'an unknown method': { code: 'ERR_VALUE', says: /model 'deem' has no method 'trian'/, method: 'trian' },
  'a method without a loss': { code: 'ERR_VALUE', says: /method 'see' returns no 'loss'/, method: 'see' },
}

/** All parameters and the optimizer's state, as bytes. */
async function everything(model: Deem, optimizer: AdamW): Promise<Buffer[]> {
  const file = (name: string) => join(tmpdir(), `deem-errors-${process.pid}-${name}.safetensors`)
  await model.save(file('model'))
  await optimizer.save(file('optimizer'))
  return ['model', 'optimizer'].map((name) => {
    const bytes = readFileSync(file(name))
    rmSync(file(name))
    return bytes
  })
}

test('training: each mistake has its code, and the next step has the bits it would have had', async (t) => {
  const { model, inputs } = await nano()
  const { model: twin } = await nano()
  const options = { lr: 1e-3, maxGradNorm: 1 }
  using optimizer = new AdamW(model, options)
  using other = new AdamW(twin, options)
  t.deepEqual(await model.trainStep(inputs, optimizer), await twin.trainStep(inputs, other))
  for (const [name, { code, says, inputs: change, options, method }] of Object.entries(training)) {
    const step = { options: options ?? {}, ...(method && { method }) }
    const error = await t.throwsAsync(
      model.trainStep({ ...inputs, ...change?.(inputs) }, optimizer, step),
      undefined,
      name,
    )
    t.is(codeOf(error), code, `${name}: ${error?.message}`)
    t.regex(error?.message ?? '', says, name)
    t.true(
      model.parameters().every((p) => p.buffer || model.gradient(p.name) === null),
      `${name} leaves gradients`,
    )
  }
  t.deepEqual(await model.trainStep(inputs, optimizer), await twin.trainStep(inputs, other))
  t.deepEqual(await everything(model, optimizer), await everything(twin, other))
})

test('training: an error drops what was accumulated, so that nothing half is stepped', async (t) => {
  const { model, inputs } = await nano()
  await model.trainStep(inputs, null, { lossScale: 0.5 })
  t.not(model.gradient('soi_token'), null)
  await t.throwsAsync(model.trainStep({ ...inputs, ...withId(3, -1)(inputs) }, null, { lossScale: 0.5 }))
  t.is(model.gradient('soi_token'), null)
  for (const lossScale of [Number.NaN, Number.POSITIVE_INFINITY])
    t.is(
      codeOf(await model.trainStep(inputs, null, { lossScale }).catch((e: unknown) => e)),
      'ERR_VALUE',
      `${lossScale}`,
    )
})

test('training: everything frozen is an error, not a step without effect', async (t) => {
  const { model, inputs } = await nano()
  model.freeze(/./)
  t.throws(() => new AdamW(model, { lr: 1e-3 }), { code: 'ERR_VALUE' })
  await t.throwsAsync(model.trainStep(inputs, null), { code: 'ERR_NO_GRADIENT' })
  model.unfreeze('soi_token')
  await t.notThrowsAsync(model.trainStep(inputs, null))
})

test('a forward pass hands a loss that is no number to its caller; only the training step refuses it', async (t) => {
  const { model, inputs } = await nano()
  const { loss, loss_txt } = await model.forward({ ...inputs, ...spoiled('img_noise', Number.NaN)(inputs) })
  t.true(Number.isNaN(loss?.item()))
  t.true(Number.isFinite(loss_txt?.item()))
})
