// Interleaved generation on one session: what it says and paints is what reading everything again would give.
import { fileURLToPath } from 'node:url'
import test from 'ava'
import {
  type GenerateOptions,
  image,
  type Picture,
  type PicturePiece,
  PictureSession,
  Pipeline,
  type Prompt,
  Session,
  type SessionMessage,
  type TextDelta,
  TextSession,
  Tokenizer,
  tensor,
  text,
} from 'deem'
import { promptInputs } from '../../dist/pipeline/prompt.js'
import { nano, nanoConfig } from '../_harness/nano.js'
import { generator } from '../_harness/random.js'

const tokenizer = await Tokenizer.load(fileURLToPath(new URL('../../test/fixtures/tokenizer', import.meta.url)), {
  padId: 511,
})
const { soi } = tokenizer.ids
type Parts = Exclude<Prompt, string>
type Piece = TextDelta | PicturePiece

async function pipeline(changes: object = {}): Promise<Pipeline> {
  const { model, inputs } = await nano(changes)
  for (const x of Object.values(inputs)) x?.dispose()
  return new Pipeline({ model, tokenizer, config: { ...nanoConfig(), ...changes } })
}
function noise(seed: number, height = 64, width = 64): Picture {
  const { uniform } = generator(seed)
  return { dtype: 'f32', shape: [height, width, 3], data: Float32Array.from({ length: height * width * 3 }, uniform) }
}
const apart = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  a.length === b.length
    ? Array.from(a).reduce((worst, v, i) => Math.max(worst, Math.abs(v - (b[i] as number))), 0)
    : Number.POSITIVE_INFINITY
async function all<T>(pieces: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const piece of pieces) list.push(piece)
  return list
}
/** Texts joined, pictures apart. */
function gathered(pieces: readonly Piece[]): (string | Picture)[] {
  const out: (string | Picture)[] = []
  for (const piece of pieces) {
    const last = out.at(-1)
    if (piece.type === 'image') out.push(piece.image)
    else if (typeof last === 'string') out[out.length - 1] = last + piece.text
    else out.push(piece.text)
  }
  return out
}

/** The same by reading the whole document again for every text and every picture. */
async function slowly(p: Pipeline, prompt: Prompt, options: GenerateOptions): Promise<(string | Picture)[]> {
  const { maxImages = 1, mode = 'auto', painting = {}, maxTokens = 64, ...rest } = options
  const document: Parts[number][] = typeof prompt === 'string' ? [text(prompt)] : [...prompt]
  const out: (string | Picture)[] = []
  let left = maxTokens
  let wanted = mode === 'image'
  for (let images = 0; ; wanted = true) {
    if (wanted) {
      if (images === maxImages) return out
      const picture = await p.generateImage(document, {
        ...painting,
        seed: ((painting.seed as number) ?? 0) + images++,
      })
      out.push(picture)
      document.push(image(picture))
    }
    if (left <= 0) return out
    const y = await p.generateText(document, { ...rest, maxTokens: left, banned: mode === 'text' ? [soi] : [] })
    if (y.text !== '') out.push(y.text)
    if (y.finishReason !== 'image') return out
    left -= y.ids.length
    document.push(text(y.ids.slice(0, -1)))
  }
}

// Biased towards pictures and drawn, so that texts of several lengths and pictures alternate.
const lively = { temperature: 1, logitBias: new Map([[soi, 102]]), maxTokens: 24, painting: { steps: 3, seed: 4 } }
const cases: Record<string, { prompt: Prompt; options: GenerateOptions; config?: object }> = {
  'words alone': { prompt: 'The work', options: { ...lively, seed: 1, maxImages: 3 } },
  'a picture first': { prompt: 'The work', options: { ...lively, seed: 2, mode: 'image', maxImages: 2 } },
  'pictures in the prompt': {
    prompt: [image(noise(1)), text('and'), image(noise(2, 40, 50)), text('go on')],
    options: { ...lively, seed: 3, maxImages: 3 },
  },
  'a wide picture, read as a whole': {
    prompt: 'wide',
    options: { ...lively, mode: 'image', fit: 'stretch', painting: { steps: 2, width: 96, height: 32, seed: 1 } },
  },
  'all earlier pictures': {
    prompt: [image(noise(3)), text('then'), image(noise(4))],
    options: { ...lively, seed: 5, mode: 'image', maxImages: 3 },
    config: { compat: 'paper' },
  },
  'no pictures': { prompt: 'The work', options: { ...lively, mode: 'text' } },
  'no picture allowed': { prompt: 'The work', options: { ...lively, maxImages: 0 } },
}

for (const [name, { prompt, options, config }] of Object.entries(cases))
  test(`generate is what reading again would give: ${name}`, async (t) => {
    const p = await pipeline(config)
    const want = await slowly(p, prompt, options)
    const opened: string[] = []
    const open = p.model.open.bind(p.model)
    p.model.open = (kind, ...rest) => {
      opened.push(kind)
      return open(kind, ...rest)
    }
    const got = gathered(await all(p.generate(prompt, options)))
    t.deepEqual(opened, ['text'], 'one session, and no painting that reads by itself')
    t.deepEqual(
      got.map((v) => (typeof v === 'string' ? v : v.shape)),
      want.map((v) => (typeof v === 'string' ? v : v.shape)),
    )
    for (const [i, v] of got.entries())
      if (typeof v !== 'string') {
        const off = apart(v.data, (want[i] as Picture).data)
        t.true(off < 1e-5, `picture ${i}: ${off}`)
      }
    p.dispose()
  })

test('a session goes on from an appended picture as from one it read', async (t) => {
  const p = await pipeline()
  const inputsOf = (document: Parts, bos = true) => promptInputs([document], tokenizer, p.geometry, { bos })
  const before: Parts = [text('The'), image(noise(1)), text('then')]
  using session = await TextSession.open(p.model, await inputsOf(before))
  for (const [i, shown] of [noise(2), noise(3)].entries()) {
    await session.append(await inputsOf([image(shown)], false))
    const document: Parts = [...before, image(noise(2)), ...(i === 1 ? [image(noise(3))] : [])]
    const inputs = await inputsOf(document)
    using fresh = await TextSession.open(p.model, inputs)
    const [got, want] = [await session.logits(), await fresh.logits()]
    t.true(apart(got, want) < 1e-5, `logits after picture ${i}: ${apart(got, want)}`)
    const length = await session.length()
    t.is(length, await fresh.length())
    // What it would paint, by the three ways there are.
    const how = { steps: 3, seed: 2 }
    const which = tensor([document.filter(({ type }) => type === 'image').length], [1], 'i64')
    const asked = await inputsOf([...document, image(noise(9))])
    using painting = await PictureSession.open(p.model, 'picture', { ...asked, which }, how)
    using own = await session.picture({}, how)
    using other = await fresh.picture({}, how)
    const conditions = await Promise.all([painting, own, other].map((s) => s.conditions()))
    const latents = await Promise.all([painting, own, other].map((s) => s.advance()))
    for (const list of [conditions, latents]) {
      const [a, b, c] = list.map((x) => x.toFloat32()) as [Float32Array, Float32Array, Float32Array]
      const bound = 1e-5 * Math.max(1, ...a.map(Math.abs))
      t.true(apart(a, b) < bound, `${apart(a, b)} of ${bound}`)
      t.true(apart(b, c) < bound, `${apart(b, c)} of ${bound}`)
    }
    // What is painted outlives the text, of which nothing stayed in it nor it in the text.
    fresh.dispose()
    t.deepEqual((await other.decode()).shape, [1, 64, 64, 3])
    t.is(await session.length(), length)
    t.deepEqual(await session.logits(), got)
  }
  await t.throwsAsync(session.picture({ nonsense: tensor([1]) } as object), { code: 'ERR_VALUE', message: /nonsense/ })
  await t.throwsAsync(session.picture({}, { width: 12 }), { code: 'ERR_CONFIG', message: /multiple of 8/ })
  p.dispose()
})

test('rows and copies paint what each of them would alone', async (t) => {
  const p = await pipeline()
  const documents: Parts[] = [
    [text('a cat of the license'), image(noise(1))],
    [image(noise(2)), text('a')],
  ]
  const inputs = await promptInputs(documents, tokenizer, p.geometry)
  using session = await TextSession.open(p.model, inputs, { copies: 2 })
  using both = await session.picture({}, { steps: 2, seed: [1, 2, 3, 1] })
  const latent = (await both.advance()).toFloat32()
  const size = latent.length / 4
  for (const [row, seed] of [1, 2, 3, 1].entries()) {
    const alone = await promptInputs([documents[row >> 1] as Parts], tokenizer, p.geometry)
    using own = await TextSession.open(p.model, alone)
    using one = await own.picture({}, { steps: 2, seed })
    const want = (await one.advance()).toFloat32()
    const off = apart(latent.slice(row * size, (row + 1) * size), want)
    t.true(off < 1e-4, `row ${row}: ${off}`)
  }
  p.dispose()
})

test('a conversation knows the pictures the model painted', async (t) => {
  const p = await pipeline()
  using chat = new Session(p)
  const opened: string[] = []
  const open = p.model.open.bind(p.model)
  p.model.open = (kind, ...rest) => {
    opened.push(kind)
    return open(kind, ...rest)
  }
  const shown = noise(5)
  const painting = { steps: 3, seed: 4 }
  const choices = ['yes', 'no']
  const asked = [image(shown), text('Paint')]
  const first = gathered(await all(chat.generate(asked, { mode: 'image', choices, painting })))
  const [painted, word] = first as [Picture, string]
  t.true(choices.includes(word))
  const options = { maxTokens: 6, minLength: 20 }
  const second = await chat.ask('And what was it?', options)
  const third = gathered(await all(chat.generate('Again', { ...options, mode: 'image', painting })))
  t.deepEqual(opened, ['text'], 'nothing was read twice')

  const { history } = chat
  const roles = ['user', 'assistant', 'user', 'assistant', 'user', 'assistant']
  t.deepEqual(
    history.map(({ role }) => role),
    roles as SessionMessage['role'][],
  )
  t.deepEqual(history[1]?.content, [
    { type: 'image', image: painted },
    { type: 'text', text: word },
  ])
  t.deepEqual(history[3]?.content, [{ type: 'text', text: second.text }])
  t.is(((history[5] as SessionMessage).content[0] as { image: Picture }).image, third[0] as Picture)

  // One prompt of everything that was said and shown.
  const document = [...asked, image(painted), text(word), text('And what was it?')]
  const want = await p.generateText(document, options)
  t.deepEqual(second.ids, want.ids)
  t.true(apart(second.logProbs, want.logProbs) < 1e-4)
  const again = await p.generateImage([...document, text(second.ids), text('Again')], painting)
  t.true(apart((third[0] as Picture).data, again.data) < 1e-5)
  p.dispose()
})
