// Text as it is written: what the cache gives is what a whole pass gives, and every rule and draw does what it says.
import test from 'ava'
import { type Deem, type DeemInputs, decode, ops, type Tensor, TextSession } from 'deem'
import { compare, whole } from '../_harness/model.js'
import { nano, prompts } from '../_harness/nano.js'

const eos = 2
const soi = 512
const tokens = { stops: [eos, soi], pad: 511 }
const rowsOf = (x: Tensor): number[][] => {
  const [rows = 0, length = 0] = x.shape
  const all = [...x.toFloat32()]
  return Array.from({ length: rows }, (_, r) => all.slice(r * length, (r + 1) * length))
}

/** Logits of every position of whole rows, without a cache: [rows][positions] of V numbers. */
async function uncached(model: Deem, prompt: DeemInputs, more: number[][]): Promise<Float32Array[][]> {
  const ids = rowsOf(prompt.text_ids).map((row, r) => [...row, ...(more[r] as number[])])
  const keep = rowsOf(prompt.attention_mask).map((row, r) => [...row, ...(more[r] as number[]).map(() => 1)])
  const length = (ids[0] as number[]).length
  const y = await model.call(
    'train',
    {
      ...prompt,
      text_ids: whole(ids.flat(), [ids.length, length]),
      attention_mask: whole(keep.flat(), [ids.length, length]),
    },
    { feedback: false, image_loss: false, details: true },
    { grad: false },
  )
  const logits = (y['logits'] as Tensor).toFloat32()
  const width = logits.length / ids.length / length
  return ids.map((_, r) =>
    Array.from({ length }, (_, i) => logits.subarray((r * length + i) * width, (r * length + i + 1) * width)),
  )
}

/** Prompts whose second row is two documents, one with a picture, and which are padded on the left. */
function packed({ image_tensors }: DeemInputs): DeemInputs {
  const image = [soi, 513, 513, 513, 513, 513]
  const rows = [
    [1, 20, 30, ...image, 40],
    [1, 9, ...image, 8, 1, 50, 60, ...image, 61],
  ]
  const length = Math.max(...rows.map((r) => r.length))
  const left = (row: number[], fill: number) => [...Array<number>(length - row.length).fill(fill), ...row]
  return {
    text_ids: whole(
      rows.flatMap((r) => left(r, 511)),
      [2, length],
    ),
    attention_mask: whole(
      rows.flatMap((r) =>
        left(
          r.map(() => 1),
          0,
        ),
      ),
      [2, length],
    ),
    num_image_per_seq: whole([1, 2], [2]),
    image_tensors: ops.contiguous(ops.slice(image_tensors as Tensor, 0, 0, 3)),
  }
}

for (const [name, make] of Object.entries({ 'several pictures and padding': prompts, 'packed documents': packed }))
  test(`with a cache as without: ${name}`, async (t) => {
    const { model, inputs } = await nano()
    const prompt = make(inputs)
    using session = await TextSession.open(model, prompt, { reserve: 4 })
    const written: number[][] = [[], []]
    const steps = [await session.logits()]
    // More than there is reserved room for.
    for (let i = 0; i < 9; i++) {
      const ids = [30 + i, 200 - 7 * i]
      for (const [r, row] of written.entries()) row.push(ids[r] as number)
      steps.push(await session.logits(ids))
    }
    const want = await uncached(model, prompt, written)
    const first = (prompt.text_ids.shape[1] as number) - 1
    for (const [i, step] of steps.entries())
      for (const r of [0, 1]) {
        const row = want[r]?.[first + i] as Float32Array
        compare(t, `row ${r} after ${i}`, step.subarray(r * row.length, (r + 1) * row.length), row, 1e-5)
      }
  })

test('beams with a cache are worth what a whole pass says', async (t) => {
  const { model, inputs } = await nano()
  const prompt = prompts(inputs)
  for (const lengthPenalty of [1, 0.5]) {
    const options = { numBeams: 4, numReturnSequences: 3, maxNewTokens: 7, minLength: 5, lengthPenalty }
    const { ids, scores } = await model.generateText(prompt, options)
    t.is(ids.length, 6)
    for (const k of [0, 1, 2]) {
      // The k-th best of both prompts. A stop id ends a row and does not count in its length.
      const rows = [ids[k] as number[], ids[3 + k] as number[]]
      const want = await uncached(
        model,
        prompt,
        rows.map((row) => row.slice(1)),
      )
      const first = (prompt.text_ids.shape[1] as number) - 1
      for (const [r, row] of rows.entries()) {
        const stop = row.findIndex((id, i) => i > 0 && (id === eos || id === soi))
        const length = stop < 0 ? row.length : stop
        let best = Number.NEGATIVE_INFINITY
        // The search writes eos for either stop id.
        for (const end of stop < 0 ? [0] : [eos, soi]) {
          let sum = 0
          for (let i = 1; i <= (stop < 0 ? row.length - 1 : stop); i++)
            sum += logSoftmax(want[r]?.[first + i - 1] as Float32Array)[i === stop ? end : (row[i] as number)] as number
          best =
            Math.abs(sum / length ** lengthPenalty - (scores[3 * r + k] as number)) <
            Math.abs(best - (scores[3 * r + k] as number))
              ? sum / length ** lengthPenalty
              : best
        }
        t.true(
          Math.abs(best - (scores[3 * r + k] as number)) <= 1e-5 * Math.max(1, Math.abs(best)),
          `${best} ${scores[3 * r + k]}`,
        )
      }
    }
    t.true((scores[0] as number) >= (scores[1] as number) && (scores[1] as number) >= (scores[2] as number))
  }
})

function logSoftmax(row: Float32Array): number[] {
  const most = Math.max(...row)
  const sum = row.reduce((a, v) => a + Math.exp(v - most), 0)
  return Array.from(row, (v) => v - most - Math.log(sum))
}

test('one beam as greedy, and a step is the best id with its log-probability', async (t) => {
  const { model, inputs } = await nano()
  const prompt = prompts(inputs)
  using session = await TextSession.open(model, prompt)
  const logits = await session.logits()
  const y = await session.next(undefined, { alternatives: 3 })
  for (const r of [0, 1]) {
    const own = logSoftmax(logits.subarray((r * logits.length) / 2, ((r + 1) * logits.length) / 2))
    const order = own.map((v, id) => ({ v, id })).sort((a, b) => b.v - a.v)
    t.is(y.ids[r], order[0]?.id)
    t.deepEqual(
      y.alternatives[r]?.map(({ id }) => id),
      order.slice(0, 3).map(({ id }) => id),
    )
    t.true(Math.abs((y.logProbs[r] as number) - (order[0]?.v as number)) < 1e-5)
  }
})

test('streaming gives what the whole call gives', async (t) => {
  const { model, inputs } = await nano()
  const prompt = prompts(inputs)
  const options = { maxNewTokens: 12, minLength: 3, temperature: 0.8, seed: 4 }
  const whole = await model.generateText(prompt, options)
  using session = await TextSession.open(model, prompt)
  const streamed: number[][] = [[1], [1]]
  for await (const { ids } of decode(session, tokens, options))
    for (const [r, row] of streamed.entries()) row.push(ids[r] as number)
  t.deepEqual(streamed, whole.ids)
})

test('draws: one seed one text, a row draws alone as in a batch, another seed another text', async (t) => {
  const { model, inputs } = await nano()
  const prompt = prompts(inputs)
  const options = { maxNewTokens: 10, minLength: 11, temperature: 1 }
  const both = await model.generateText(prompt, { ...options, seed: [7, 9] })
  t.deepEqual((await model.generateText(prompt, { ...options, seed: [7, 9] })).ids, both.ids)
  t.notDeepEqual((await model.generateText(prompt, { ...options, seed: [7, 10] })).ids[1], both.ids[1])
  t.deepEqual((await model.generateText(prompt, { ...options, seed: [8, 9] })).ids[1], both.ids[1])
  const three = await model.generateText(prompt, { ...options, seed: 7, numReturnSequences: 3 })
  t.is(three.ids.length, 6)
  t.deepEqual(three.ids[0], both.ids[0])
  t.notDeepEqual(three.ids[1], three.ids[0])
  // Without any choice left, drawing is taking the best.
  const greedy = await model.generateText(prompt, { maxNewTokens: 10, minLength: 11 })
  for (const narrow of [{ topK: 1 }, { topP: 1e-6 }, { minP: 1 }])
    t.deepEqual(
      (await model.generateText(prompt, { ...options, seed: 3, ...narrow })).ids,
      greedy.ids,
      JSON.stringify(narrow),
    )
})

test('draws follow the probabilities that the rules leave', async (t) => {
  const { model, inputs } = await nano()
  using session = await TextSession.open(model, prompts(inputs))
  const logits = await session.logits()
  const width = logits.length / 2
  const own = logSoftmax(logits.subarray(0, width))
  const order = own.map((v, id) => ({ id, v })).sort((a, b) => b.v - a.v)
  const n = 4000
  const draw = async (options: object): Promise<Map<number, number>> => {
    const counts = new Map<number, number>()
    for (let seed = 0; seed < n; seed++) {
      const { ids } = await session.next(undefined, { ...options, seeds: [seed, 0] })
      counts.set(ids[0] as number, (counts.get(ids[0] as number) ?? 0) + 1)
    }
    return counts
  }
  const expect = (counts: Map<number, number>, kept: { id: number; weight: number }[], what: string) => {
    const total = kept.reduce((a, { weight }) => a + weight, 0)
    t.true(
      [...counts.keys()].every((id) => kept.some((k) => k.id === id)),
      `${what}: something else was drawn`,
    )
    for (const { id, weight } of kept) {
      const p = weight / total
      const deviation = Math.sqrt(n * p * (1 - p))
      t.true(
        Math.abs((counts.get(id) ?? 0) - n * p) <= 5 * deviation + 1,
        `${what}: id ${id} ${counts.get(id)} of ${n * p}`,
      )
    }
  }
  const at = (temperature: number) => order.map(({ id, v }) => ({ id, weight: Math.exp(v / temperature) }))
  expect(await draw({ temperature: 0.7, topK: 5 }), at(0.7).slice(0, 5), 'top k')
  const sharp = at(0.5)
  const total = sharp.reduce((a, { weight }) => a + weight, 0)
  let reached = 0
  const nucleus = sharp.filter(({ weight }) => {
    const open = reached < 0.6 * total
    reached += weight
    return open
  })
  expect(await draw({ temperature: 0.5, topP: 0.6 }), nucleus, 'top p')
  const first = sharp[0]?.weight as number
  expect(
    await draw({ temperature: 0.5, minP: 0.3 }),
    sharp.filter(({ weight }) => weight >= 0.3 * first),
    'min p',
  )
})

test('rules: bias, bans, choices and repetition', async (t) => {
  const { model, inputs } = await nano()
  const prompt = prompts(inputs)
  const biased = await model.generateText(prompt, { maxNewTokens: 3, logitBias: new Map([[77, 1000]]) })
  t.deepEqual(biased.ids, [
    [1, 77, 77, 77],
    [1, 77, 77, 77],
  ])
  // One of two phrases, letter by letter.
  const phrases = [
    [90, 91, eos],
    [90, 95, 96, eos],
  ]
  const allowed = (_row: number, ids: readonly number[]) =>
    phrases.filter((p) => ids.every((id, i) => p[i] === id)).map((p) => p[ids.length] as number)
  const { ids } = await model.generateText(prompt, { maxNewTokens: 10, allowed })
  for (const row of ids)
    t.true(
      phrases.some((p) => p.every((id, i) => row[i + 1] === id)),
      String(row),
    )
  const plain = await model.generateText(prompt, { maxNewTokens: 12, minLength: 13 })
  const varied = await model.generateText(prompt, { maxNewTokens: 12, minLength: 13, repetitionPenalty: 1e6 })
  const repeats = (row: number[]) => row.length - new Set(row).size
  t.true(varied.ids.every((row) => repeats(row.slice(1)) === 0))
  t.deepEqual(plain.ids.length, 2)
})

test('scores of continuations leave the session as it was', async (t) => {
  const { model, inputs } = await nano()
  const all = prompts(inputs)
  using session = await TextSession.open(model, all)
  const before = await session.logits()
  const lists = [[30, 31, 32], [77]]
  const got = await session.score(lists)
  t.deepEqual(await session.logits(), before)
  t.is(await session.length(), all.text_ids.shape[1] as number)
  const want = await uncached(model, all, [
    [30, 31, 32],
    [77, 0, 0],
  ])
  const first = (all.text_ids.shape[1] as number) - 1
  for (const [r, list] of lists.entries())
    for (const [i, id] of list.entries())
      t.true(
        Math.abs((got[r]?.[i] as number) - (logSoftmax(want[r]?.[first + i] as Float32Array)[id] as number)) < 1e-5,
      )
})

test('a conversation goes on: more text, more pictures, and steps taken back', async (t) => {
  const { model, inputs } = await nano()
  const prompt = packed(inputs)
  const picture = ops.contiguous(ops.slice(inputs.image_tensors as Tensor, 0, 3, 4))
  const image = [soi, 513, 513, 513, 513, 513]
  const turn = [
    [70, ...image, 71],
    [72, 73, 74, 75, 76, 77, 78, 79],
  ]
  const length = turn[0]?.length as number
  const pixels = (prompt.image_tensors as Tensor).toFloat32()
  using session = await TextSession.open(model, prompt)
  await session.logits([60, 61])
  await session.append({
    text_ids: whole(turn.flat(), [2, length]),
    attention_mask: whole(Array(2 * length).fill(1), [2, length]),
    num_image_per_seq: whole([1, 0], [2]),
    image_tensors: picture,
  })
  const after = await session.logits()
  // The same rows in one piece; pictures in reading order: the new one is the second of row 0.
  const ids = rowsOf(prompt.text_ids).map((row, r) => [...row, 60 + r, ...(turn[r] as number[])])
  const keep = rowsOf(prompt.attention_mask).map((row) => [...row, 1, ...Array<number>(length).fill(1)])
  const size = pixels.length / 3
  const order = Float32Array.from([...pixels.subarray(0, size), ...picture.toFloat32(), ...pixels.subarray(size)])
  const { tensor } = await import('deem')
  const wide = (ids[0] as number[]).length
  const want = await uncached(
    model,
    {
      text_ids: whole(ids.flat(), [2, wide]),
      attention_mask: whole(keep.flat(), [2, wide]),
      num_image_per_seq: whole([2, 2], [2]),
      image_tensors: tensor(order, [4, 64, 64, 3]),
    },
    [[], []],
  )
  for (const r of [0, 1]) {
    const row = want[r]?.at(-1) as Float32Array
    compare(t, `row ${r}`, after.subarray(r * row.length, (r + 1) * row.length), row, 1e-5)
  }
  const mark = await session.length()
  const next = await session.logits([80, 81])
  await session.logits([82, 83])
  await session.truncate(mark)
  await t.throwsAsync(session.logits(), { code: 'ERR_VALUE', message: /truncation/ })
  t.deepEqual(await session.logits([80, 81]), next)
  await t.throwsAsync(session.truncate(mark - 1), { code: 'ERR_VALUE' })
  await t.throwsAsync(session.truncate(mark + 9), { code: 'ERR_VALUE' })
  await t.throwsAsync(session.logits([80]), { code: 'ERR_SHAPE' })
  await t.throwsAsync(session.logits([80, 513]), { code: 'ERR_VALUE', message: /append/ })
  await t.throwsAsync(session.logits([80, 518]), { code: 'ERR_INDEX' })
  t.is(await session.length(), mark + 1)
})
