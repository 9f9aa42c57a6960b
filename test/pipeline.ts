// Prompts of words and pictures in, text and pictures out: on the smallest whole model with the reference tokenizer.
import { fileURLToPath } from 'node:url'
import test from 'ava'
import {
  image,
  memory,
  type Picture,
  type PicturePiece,
  Pipeline,
  type Prompt,
  Session,
  type TextDelta,
  type TextResult,
  Tokenizer,
  tensor,
  text,
} from 'deem'
import { promptInputs } from '../dist/pipeline/prompt.js'
import { TextStream } from '../dist/pipeline/text-stream.js'
import { collect } from './_harness/memory.js'
import { nano, nanoConfig } from './_harness/nano.js'
import { generator } from './_harness/random.js'

const pieces = fileURLToPath(new URL('../test/fixtures/tokenizer', import.meta.url))
const tokenizer = await Tokenizer.load(pieces, { padId: 511 })

async function pipeline(): Promise<Pipeline> {
  const { model, inputs } = await nano()
  for (const x of Object.values(inputs)) x?.dispose()
  return new Pipeline({ model, tokenizer, config: nanoConfig() })
}

function noise(seed: number, height = 40, width = 50): Picture {
  const { uniform } = generator(seed)
  return { dtype: 'f32', shape: [height, width, 3], data: Float32Array.from({ length: height * width * 3 }, uniform) }
}

test('text: one prompt, several at once, streamed, and with a stop string are the same text', async (t) => {
  const p = await pipeline()
  const prompts: Prompt[] = [
    'The license',
    [image(noise(1)), text('What is this?')],
    [text('a'), image(noise(2)), image(noise(3))],
  ]
  const options = { maxTokens: 14, minLength: 12 }
  const alone: TextResult[] = []
  for (const prompt of prompts) alone.push(await p.generateText(prompt, options))
  t.deepEqual(
    await p.generateTexts(prompts, options).then((all) => all.map((r) => r.ids)),
    alone.map((r) => r.ids),
  )
  for (const [i, prompt] of prompts.entries()) {
    const want = alone[i] as TextResult
    t.is(want.text, tokenizer.decode(want.ids))
    t.is(want.logProbs.length, want.ids.length)
    let streamed = ''
    const parts = p.streamText(prompt, options)
    for (;;) {
      const { value, done } = await parts.next()
      if (done) {
        t.deepEqual(value, want)
        break
      }
      t.not(value.text, '')
      streamed += value.text
    }
    t.is(streamed, want.text)
    // Any two letters of it stop it there.
    const letters = want.text.slice(3, 5)
    const cut = await p.generateText(prompt, { ...options, stop: [letters, 'nowhere'] })
    t.is(cut.text, want.text.slice(0, want.text.indexOf(letters)))
    t.is(cut.finishReason, 'stop')
  }
  p.dispose()
})

test('text: choices, bias by token, alternatives, and the same draws for the same seed', async (t) => {
  const p = await pipeline()
  const prompt: Prompt = [image(noise(1)), text('yes or no?')]
  const choices = ['yes', 'no', 'nothing', 'never ever']
  for (const seed of [1, 2, 3, 4]) {
    const y = await p.generateText(prompt, { choices, temperature: 3, seed })
    t.true(choices.includes(y.text), y.text)
    t.is(y.finishReason, 'stop')
  }
  const likeliest = await p.generateText(prompt, { choices: ['yes', 'no'] })
  t.true(['yes', 'no'].includes(likeliest.text))
  const token = tokenizer.token(300) as string
  const biased = await p.generateText(prompt, { maxTokens: 3, logitBias: { [token]: 500 } })
  t.deepEqual(biased.ids, [300, 300, 300])
  t.is(biased.finishReason, 'length')
  const wide = await p.generateText(prompt, { maxTokens: 2, minLength: 4, alternatives: 3 })
  t.deepEqual(
    wide.alternatives.map((a) => a.length),
    [3, 3],
  )
  t.is(wide.alternatives[0]?.[0]?.logProb, wide.logProbs[0])
  const drawn = { maxTokens: 8, temperature: 1, seed: 5 }
  t.deepEqual(await p.generateText(prompt, drawn), await p.generateText(prompt, drawn))
  await t.throwsAsync(p.generateText(prompt, { logitBias: { nowhere: 1 } }), { code: 'ERR_VALUE', message: /nowhere/ })
  await t.throwsAsync(p.generateText(prompt, { choices: [] }), { code: 'ERR_VALUE' })
  await t.throwsAsync(p.generateText([text('<|sniffer|>')]), { code: 'ERR_VALUE' })
  await t.throwsAsync(p.generateTexts([]), { code: 'ERR_VALUE' })
  await t.throwsAsync(p.generateText([image(new Uint8Array([1, 2, 3]))]), { code: 'ERR_FORMAT' })
  await t.throwsAsync(p.generateText('a '.repeat(400)), { code: 'ERR_VALUE', message: /256/ })
  p.dispose()
})

test('scores rank what the model would say', async (t) => {
  const p = await pipeline()
  const prompt: Prompt = [image(noise(4)), text('What?')]
  const options = ['license', 'the work', 'x']
  const scores = await p.score(prompt, options)
  t.is(scores.length, 3)
  t.true(scores.every((s) => s < 0))
  const chosen = await p.generateText(prompt, { choices: ['license', 'x'] })
  t.true(['license', 'x'].includes(chosen.text))
  for (const [i, s] of options.entries()) {
    const [alone] = await p.score(prompt, [s])
    t.true(Math.abs((alone as number) - (scores[i] as number)) < 1e-4)
  }
  p.dispose()
})

test('pictures, embeddings and reconstructions have their shapes and follow their seeds', async (t) => {
  const p = await pipeline()
  const painting = { steps: 3, seed: 2 }
  const one = await p.generateImage('a red license', painting)
  t.deepEqual(one.shape, [64, 64, 3])
  t.deepEqual(await p.generateImage('a red license', painting), one)
  t.notDeepEqual(await p.generateImage('a blue license', painting), one)
  t.notDeepEqual(await p.generateImage('a red license', { ...painting, seed: 3 }), one)
  t.deepEqual((await p.generateImage([image(noise(1)), text('again')], painting)).shape, [64, 64, 3])
  t.deepEqual((await p.reconstruct(noise(5), painting)).shape, [64, 64, 3])
  const tokens = await p.embed(noise(5))
  t.is(tokens.length, 5)
  t.true(tokens.every((row) => row.length === 32))
  p.dispose()
})

test('a picture from another one, whole or within a region, of any size', async (t) => {
  const p = await pipeline()
  const [width, height] = [96, 40]
  const from = noise(6, height, width)
  const painting = { steps: 5, seed: 2, width, height }
  const free = await p.generateImage('a license', painting)
  t.deepEqual(free.shape, [height, width, 3])
  t.deepEqual(await p.generateImage('a license', { ...painting, picture: from }), free, 'all of it is noise')
  // As the model paints it when it is given tensors.
  const inputs = await promptInputs([[text('a license'), image(noise(0))]], tokenizer, p.geometry)
  const which = tensor([0], [1], 'i64')
  const picture = tensor(from.data, [1, height, width, 3])
  const box = [8, 0, 40, 16] as const
  const inside = Float32Array.from({ length: width * height }, (_, i) => {
    const [x, y] = [i % width, Math.floor(i / width)]
    return x >= 8 && x < 48 && y < 16 ? 1 : 0
  })
  const repaint = tensor(inside, [1, height, width, 1])
  for (const how of [{ strength: 0.4 }, { strength: 1 }, { strength: 0.7, tiling: { size: 32 } }]) {
    const options = { ...painting, ...how }
    const want = await p.model.paint({ ...inputs, which, picture }, options)
    t.deepEqual((await p.generateImage('a license', { ...options, picture: from })).data, want.toFloat32())
    const part = await p.model.paint({ ...inputs, which, picture, repaint }, options)
    const got = await p.generateImage('a license', { ...options, picture: from, repaint: { box } })
    t.deepEqual(got.data, part.toFloat32())
    t.notDeepEqual(part.toFloat32(), want.toFloat32())
  }
  // Of another shape it is brought to the painted one first.
  const small = noise(7, 30, 20)
  const cut = await p.generateImage('a license', { ...painting, picture: small, strength: 0.4 })
  const all = await p.generateImage('a license', { ...painting, picture: small, strength: 0.4, fit: 'stretch' })
  t.deepEqual([cut.shape, all.shape], [free.shape, free.shape])
  t.notDeepEqual(cut.data, all.data)
  t.deepEqual((await p.reconstruct(small, painting)).shape, [height, width, 3])
  for (const bad of [{ width: 60 }, { width: 2 ** 40 }, { height: 0 }, { height: 1.5 }])
    for (const start of [{}, { picture: from }])
      await t.throwsAsync(p.generateImage('x', { ...bad, ...start }), { code: 'ERR_CONFIG' }, JSON.stringify(bad))
  await t.throwsAsync(p.generateImage('x', { repaint: { box } }), { code: 'ERR_VALUE', message: /picture whose rest/ })
  await t.throwsAsync(p.generateImage('x', { picture: new Uint8Array(3) }), { code: 'ERR_FORMAT' })
  p.dispose()
})

test('interleaved: text and pictures alternate, no more than asked for', async (t) => {
  const p = await pipeline()
  const run = async (options: object) => {
    const list: (TextDelta | PicturePiece)[] = []
    for await (const piece of p.generate('The work', { maxTokens: 12, painting: { steps: 2 }, ...options }))
      list.push(piece)
    return list
  }
  const kinds = (list: (TextDelta | PicturePiece)[]) => list.map((piece) => piece.type)
  t.is(kinds(await run({ mode: 'image', maxTokens: 3 }))[0], 'image')
  t.false(kinds(await run({ mode: 'text' })).includes('image'))
  // A model that always wants a picture.
  const eager = { logitBias: new Map([[tokenizer.ids.soi, 1000]]) }
  t.deepEqual(kinds(await run({ ...eager, maxImages: 3 })), ['image', 'image', 'image'])
  t.deepEqual(kinds(await run({ ...eager, maxImages: 0 })), [])
  const [first, second] = (await run({ ...eager, maxImages: 2 })) as PicturePiece[]
  t.notDeepEqual(first?.image.data, second?.image.data)
  p.dispose()
})

test.serial('what is left in the middle, or aborted, leaves nothing behind', async (t) => {
  const p = await pipeline()
  const prompt: Prompt = [image(noise(1)), text('What?')]
  await p.generateText(prompt, { maxTokens: 2 })
  await collect()
  const before = memory().current
  const reason = new Error('stopped by the test')
  const long = { maxTokens: 100, minLength: 120 }
  // The quickest of three, of which aborted texts get a fifth at most, however fast the machine is and becomes.
  let whole = Number.POSITIVE_INFINITY
  for (let i = 0; i < 3; i++) {
    const begin = performance.now()
    await p.generateText(prompt, long)
    whole = Math.min(whole, performance.now() - begin)
  }
  for (let i = 0; i < 5; i++) {
    for await (const _ of p.streamText(prompt, { maxTokens: 50, minLength: 60 })) break
    const stop = new AbortController()
    const text = p.generateText(prompt, { ...long, signal: stop.signal })
    setTimeout(() => stop.abort(reason), (whole * i) / 20)
    await t.throwsAsync(text, { is: reason })
    const paint = new AbortController()
    const picture = p.generateImage(prompt, { steps: 500, signal: paint.signal })
    setTimeout(() => paint.abort(reason), 5 * i)
    await t.throwsAsync(picture, { is: reason })
    const both = new AbortController()
    const mode = { mode: 'image', painting: { steps: 500 }, signal: both.signal } as const
    using chat = new Session(p)
    const pieces = i % 2 === 0 ? p.generate(prompt, mode) : chat.generate(prompt, mode)
    setTimeout(() => both.abort(reason), 20 * i)
    await t.throwsAsync(pieces.next(), { is: reason })
    for await (const _ of p.generate(prompt, { mode: 'image', painting: { steps: 1 } })) break
  }
  await collect()
  t.true(memory().current <= before, `${memory().current} above ${before}`)
  p.dispose()
})

test('streams show nothing that changes later', (t) => {
  const { uniform } = generator(3)
  const texts = ['naïve café — 漢字 🙂 end', 'a stop here', 'xx ### yy', '##', 'ab'.repeat(20)]
  for (const whole of texts)
    for (const stops of [[], ['###'], ['stop', 'café'], ['b'], ['🙂']]) {
      const ids = tokenizer.encode(whole)
      const stream = new TextStream(tokenizer, stops)
      let shown = ''
      for (const id of ids) {
        shown += stream.push(id)
        t.false(shown.includes('\ufffd'), whole)
        for (const stop of stops) t.false(shown.includes(stop))
      }
      shown += stream.end()
      const text = tokenizer.decode(ids)
      const at = stops.map((s) => text.indexOf(s)).filter((i) => i >= 0)
      t.is(shown, at.length > 0 ? text.slice(0, Math.min(...at)) : text, `${whole} ${stops}`)
      t.is(stream.text, shown)
    }
  // Bytes that never become a character are shown at the end.
  const stream = new TextStream(tokenizer)
  const broken = [3 + 0xe2, 3 + 0x82]
  t.is(broken.map((id) => stream.push(id)).join(''), '')
  t.not(stream.end(), '')
  t.true(uniform() < 1)
})
