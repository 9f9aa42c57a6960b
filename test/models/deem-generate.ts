// What a trained model says, paints and sees, and what it may not depend on. Parity compares it with the reference.
import test from 'ava'
import { type Deem, type DeemInputs, ops, type PaintOptions, type Tensor, tensor } from 'deem'
import { compare, normals, whole } from '../_harness/model.js'
import { nano, prompts } from '../_harness/nano.js'

const pad = 511
const stops = new Set([2, 512])

const numbers = (x: Tensor) => [...x.toFloat32()]
const rowsOf = (x: Tensor): number[][] => {
  const [rows = 0, length = 0] = x.shape
  const all = numbers(x)
  return Array.from({ length: rows }, (_, r) => all.slice(r * length, (r + 1) * length))
}
const generate = async (model: Deem, inputs: DeemInputs, options: object = {}) => {
  const { ids } = await model.generateText(inputs, { maxNewTokens: 8, minLength: 6, ...options })
  return ids
}
const paint = async (
  model: Deem,
  inputs: DeemInputs & { which: Tensor; latent?: Tensor },
  options: PaintOptions = {},
) => {
  using picture = await model.paint(inputs, { steps: 4, ...options })
  return { shape: picture.shape, data: picture.toFloat32() }
}

/** Row `row` of two prompts by itself, without its padding; the first has three pictures, the second one. */
function alone({ text_ids, attention_mask, image_tensors }: DeemInputs, row: number): DeemInputs {
  const keep = rowsOf(attention_mask)[row]?.filter((v) => v === 1) ?? []
  const ids = rowsOf(text_ids)[row]?.slice(-keep.length) ?? []
  return {
    text_ids: whole(ids, [1, ids.length]),
    attention_mask: whole(keep, [1, keep.length]),
    num_image_per_seq: whole([row === 0 ? 3 : 1], [1]),
    image_tensors: ops.slice(image_tensors as Tensor, 0, row === 0 ? 0 : 3, row === 0 ? 3 : 4),
  }
}

test('text: ids start with bos, end at eos or start of image, and are padded from there', async (t) => {
  const { model, inputs } = await nano()
  const x = prompts(inputs)
  for (const [maxNewTokens, minLength] of [
    [1, 0],
    [3, 0],
    [10, 0],
    [10, 10],
    [40, 5],
  ] as const) {
    const rows = await generate(model, x, { maxNewTokens, minLength })
    const width = rows[0]?.length ?? 0
    t.true(rows.length === 2 && width >= 2 && width <= 1 + maxNewTokens, `${width} of ${maxNewTokens}`)
    for (const ids of rows) {
      t.is(ids[0], 1)
      const at = ids.findIndex((id, i) => i > 0 && stops.has(id))
      if (at < 0) continue
      t.true(at >= minLength, `stops at ${at}, not before ${minLength}`)
      t.true(
        ids.slice(at + 1).every((id) => id === pad),
        String(ids),
      )
    }
    // The last column is there because some row needs it.
    t.true(rows.some((ids) => ids.at(-1) !== pad) || width === 1 + maxNewTokens)
  }
})

test('text: the same for every seed and every call, and a row says what it says alone', async (t) => {
  const { model, inputs } = await nano()
  const { model: twin } = await nano()
  const x = prompts(inputs)
  const want = await generate(model, x, { maxNewTokens: 20, minLength: 18 })
  t.deepEqual(await generate(model, x, { maxNewTokens: 20, minLength: 18, seed: 5 }), want)
  t.deepEqual(await generate(twin, x, { maxNewTokens: 20, minLength: 18 }), want)
  for (const row of [0, 1])
    t.deepEqual(await generate(model, alone(x, row), { maxNewTokens: 20, minLength: 18 }), [want[row]], `row ${row}`)
  // A prefix of the longer answer.
  const short = await generate(model, x, { maxNewTokens: 5, minLength: 18 })
  t.deepEqual(
    short,
    want.map((ids) => ids.slice(0, 6)),
  )
})

test('text: prompts without pictures, alone and beside one that has some', async (t) => {
  const { model, inputs } = await nano()
  const plain = {
    text_ids: whole([1, 20, 30, 40], [1, 4]),
    attention_mask: whole([1, 1, 1, 1], [1, 4]),
    num_image_per_seq: whole([0], [1]),
  }
  const [want] = await generate(model, plain)
  const other = alone(prompts(inputs), 1)
  const ids = rowsOf(other.text_ids)[0] as number[]
  const fill = (value: number, row: number[]) => [...Array(ids.length - 4).fill(value), ...row]
  const both = {
    text_ids: whole([...fill(pad, [1, 20, 30, 40]), ...ids], [2, ids.length]),
    attention_mask: whole([...fill(0, [1, 1, 1, 1]), ...ids.map(() => 1)], [2, ids.length]),
    num_image_per_seq: whole([0, 1], [2]),
    ...(other.image_tensors && { image_tensors: other.image_tensors }),
  }
  t.deepEqual(await generate(model, both), [want, (await generate(model, other))[0]])
})

test('text depends on the picture, and not on what the mask hides', async (t) => {
  const { model } = await nano()
  const logits = async (image: Tensor, mask?: Tensor) => {
    const { logits: y } = await model.call(
      'train',
      {
        ...{
          text_ids: whole([1, 512, 513, 513, 513, 513, 513, 9], [1, 8]),
          attention_mask: whole(Array(8).fill(1), [1, 8]),
        },
        ...{ num_image_per_seq: whole([1], [1]), image_tensors: image, image_tensors_mask: mask },
      },
      { feedback: false, image_loss: false, details: true },
      { grad: false },
    )
    return numbers(ops.slice(y as Tensor, 1, 7, 8))
  }
  const bright = ops.full([1, 64, 64, 3], 1, 'f32')
  const dark = ops.full([1, 64, 64, 3], 0, 'f32')
  const all = ops.full([1, 64, 64, 1], 1, 'f32')
  const seen = await logits(bright)
  t.notDeepEqual(await logits(dark), seen)
  t.deepEqual(await logits(bright, all), seen, 'no mask is a mask of ones')
  t.notDeepEqual(await logits(bright, ops.full([1, 64, 64, 1], 0, 'f32')), seen)
})

test('paintings: one seed one picture, another seed another', async (t) => {
  const { model, inputs } = await nano()
  const { model: twin } = await nano()
  const x = { ...prompts(inputs), which: whole([1, 3], [2]) }
  const want = await paint(model, x, { seed: 3 })
  t.deepEqual(want.shape, [2, 64, 64, 3])
  t.true(want.data.every((v) => v >= 0 && v <= 1))
  t.deepEqual(await paint(model, x, { seed: 3 }), want)
  t.deepEqual(await paint(twin, x, { seed: 3 }), want)
  for (const other of [{ seed: 4 }, { seed: 3, steps: 5 }, { seed: 3, guidance: 1 }])
    t.notDeepEqual((await paint(model, x, other)).data, want.data, JSON.stringify(other))
})

test('paintings: a batch is its pictures, each painted alone', async (t) => {
  const { model, inputs } = await nano()
  const x = prompts(inputs)
  const latent = normals([3, 8, 8, 4], 5)
  const both = await paint(model, { ...x, which: whole([3, 1, 0], [3]), latent })
  const size = both.data.length / 3
  for (const [k, image] of [3, 1, 0].entries()) {
    const one = await paint(model, {
      ...x,
      which: whole([image], [1]),
      latent: ops.contiguous(ops.slice(latent, 0, k, k + 1)),
    })
    compare(t, `image ${image} of the batch`, one.data, both.data.subarray(k * size, (k + 1) * size), 1e-4)
  }
  // By rows too, where documents are said to start behind the padding. Image 3 is the only one of row 1.
  const [, padded = []] = rowsOf(x.text_ids)
  const starts = whole([0, 0, 26, padded.indexOf(1)], [4])
  const first = ops.contiguous(ops.slice(latent, 0, 0, 1))
  const beside = await paint(model, { ...x, nearest_bos_idxs: starts, which: whole([3], [1]), latent: first })
  const apart = await paint(model, {
    ...alone(x, 1),
    nearest_bos_idxs: whole([0], [1]),
    which: whole([0], [1]),
    latent: first,
  })
  t.true(padded.indexOf(1) > 0)
  compare(t, 'a row alone', apart.data, beside.data, 1e-4)
})

test('paintings: pixels given for the picture asked for, or for later ones, are not looked at', async (t) => {
  const { model, inputs } = await nano()
  const x = prompts(inputs)
  const pixels = (x.image_tensors as Tensor).toFloat32()
  const size = pixels.length / 4
  const changed = (image: number) =>
    tensor(
      pixels.map((v, i) => (Math.floor(i / size) === image ? 1 - v : v)),
      [4, 64, 64, 3],
    )
  const one = (image_tensors: Tensor) => paint(model, { ...x, image_tensors, which: whole([1], [1]) }, { seed: 1 })
  const want = await one(x.image_tensors as Tensor)
  for (const image of [1, 2, 3]) t.deepEqual(await one(changed(image)), want, `image ${image}`)
  t.notDeepEqual((await one(changed(0))).data, want.data)
})

test('reconstructions follow the picture, the mask, the seed, and nothing else', async (t) => {
  const { model, inputs } = await nano()
  const image_tensors = inputs.image_tensors as Tensor
  const latent = normals([4, 8, 8, 4], 6)
  const options = { steps: 3 }
  const run = async (x: Parameters<Deem['reconstruct']>[0], o: PaintOptions = options) => {
    using y = await model.reconstruct(x, o)
    return y.toFloat32()
  }
  const want = await run({ image_tensors, latent })
  t.deepEqual(await run({ image_tensors, latent }, { ...options, seed: 9 }), want)
  t.deepEqual(await run({ image_tensors, latent, image_tensors_mask: ops.full([4, 64, 64, 1], 1, 'f32') }), want)
  t.notDeepEqual(await run({ image_tensors, latent, image_tensors_mask: inputs.image_tensors_mask as Tensor }), want)
  t.notDeepEqual(
    await run({ image_tensors }, { ...options, seed: 1 }),
    await run({ image_tensors }, { ...options, seed: 2 }),
  )
  const size = want.length / 4
  const first = (x: Tensor) => ops.contiguous(ops.slice(x, 0, 2, 3))
  compare(
    t,
    'the third picture alone',
    await run({ image_tensors: first(image_tensors), latent: first(latent) }),
    want.subarray(2 * size, 3 * size),
    1e-4,
  )
})

test('what the encoder sees does not depend on the rest of the batch', async (t) => {
  const { model, inputs } = await nano()
  const image_tensors = inputs.image_tensors as Tensor
  const all = await model.see({ image_tensors })
  t.deepEqual(all['query_embeds']?.shape, [4, 5, 32])
  t.deepEqual(all['sniffer_tokens']?.shape, [4, 17, 32])
  for (const i of [0, 3]) {
    const one = await model.see({ image_tensors: ops.slice(image_tensors, 0, i, i + 1) })
    for (const [name, y] of Object.entries(all))
      compare(
        t,
        `${name} of picture ${i}`,
        (one[name] as Tensor).toFloat32(),
        ops.contiguous(ops.slice(y, 0, i, i + 1)).toFloat32(),
        1e-6,
      )
  }
  t.true(Object.values(all).every((y) => y.tracked))
  const still = await model.see({ image_tensors }, { grad: false })
  for (const [name, y] of Object.entries(still)) {
    t.false(y.tracked, name)
    t.deepEqual(y.read(), all[name]?.read(), name)
  }
  const none = await model.see({ image_tensors: ops.slice(image_tensors, 0, 0, 0) })
  t.deepEqual(none['query_embeds']?.shape, [0, 5, 32])
})

test('what the denoiser is told is what training tells it', async (t) => {
  const { model, inputs } = await nano()
  const given = { ...inputs, uncond_rand: ops.full([4], 0.99, 'f32') }
  const { image_cond } = await model.forward(given, { details: true }, { grad: false })
  using cond = await model.conditions(inputs)
  t.true(cond.tracked)
  t.deepEqual(cond.shape, [4, 5, 32])
  t.deepEqual(cond.read(), image_cond?.read())
})
