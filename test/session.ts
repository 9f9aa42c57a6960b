// Conversations: every turn is what one prompt of all that was said would give, and their ends are clean.
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { image, memory, type Picture, Pipeline, type Prompt, Session, type TextResult, Tokenizer, text } from 'deem'
import { collect } from './_harness/memory.js'
import { nano, nanoConfig } from './_harness/nano.js'
import { generator } from './_harness/random.js'

const tokenizer = await Tokenizer.load(fileURLToPath(new URL('../test/fixtures/tokenizer', import.meta.url)), {
  padId: 511,
})

async function pipeline(): Promise<Pipeline> {
  const { model, inputs } = await nano()
  for (const x of Object.values(inputs)) x?.dispose()
  return new Pipeline({ model, tokenizer, config: nanoConfig() })
}
function noise(seed: number): Picture {
  const { uniform } = generator(seed)
  return { dtype: 'f32', shape: [64, 64, 3], data: Float32Array.from({ length: 64 * 64 * 3 }, uniform) }
}
const template = { system: 'The license. ', user: ['Q: ', ' A:'], assistant: '\n' } as const
type Parts = Exclude<Prompt, string>
const wrapped = (parts: Prompt): Parts => [
  text(template.user[0]),
  ...(typeof parts === 'string' ? [text(parts)] : parts),
  text(template.user[1]),
]
/** Adjacent words are one text: a template is cut into tokens with what it surrounds. */
function joined(parts: Parts): Parts {
  const out: Parts[number][] = []
  for (const part of parts) {
    const last = out.at(-1)
    if (part.type === 'text' && typeof part.text === 'string' && last?.type === 'text' && typeof last.text === 'string')
      out[out.length - 1] = text(last.text + part.text)
    else out.push(part)
  }
  return out
}
/** What the model said, without an end of its own, and what the template writes after it. */
const said = ({ ids }: TextResult) => [
  text(ids.filter((id) => id !== tokenizer.ids.eos && id !== tokenizer.ids.soi)),
  text(template.assistant),
]

test('every turn is what one long prompt gives, with pictures in any of them', async (t) => {
  const p = await pipeline()
  using chat = new Session(p, { template })
  const turns: Prompt[] = [
    'What?',
    [image(noise(1)), text('and this?')],
    'Which?',
    [text('more'), image(noise(2)), image(noise(3))],
  ]
  let document: Parts = [text(template.system)]
  for (const [i, turn] of turns.entries()) {
    const options = { maxTokens: 6 + i, minLength: i === 1 ? 0 : 20, ...(i === 2 && { temperature: 1, seed: 3 }) }
    const got = await chat.ask(turn, options)
    document = [...document, ...wrapped(turn)]
    const want = await p.generateText(joined(document), options)
    if (i === 2) t.is(got.ids.length, want.ids.length)
    else t.deepEqual([got.text, got.ids], [want.text, want.ids], `turn ${i}`)
    for (const [k, v] of got.logProbs.entries()) if (i !== 2) t.true(Math.abs(v - (want.logProbs[k] as number)) < 1e-4)
    document = [...document, ...said(got)]
  }
  p.dispose()
})

test('a stop string, an answer in pieces, another turn', async (t) => {
  const p = await pipeline()
  using chat = new Session(p, { template: 'vicuna', system: 'License.' })
  let streamed = ''
  for await (const { text: more } of chat.stream('What?', { maxTokens: 8, minLength: 20 })) streamed += more
  using other = new Session(p, { template: 'vicuna', system: 'License.' })
  t.is((await other.ask('What?', { maxTokens: 8, minLength: 20 })).text, streamed)
  t.is((await chat.ask('Or?', { choices: ['yes', 'no'] })).finishReason, 'stop')
  p.dispose()
})

// Alone: it counts memory.
test.serial(
  'one turn at a time; a turn that fails or is left ends the conversation and gives its memory back',
  async (t) => {
    const p = await pipeline()
    await p.generateText('a', { maxTokens: 1 })
    await collect()
    const before = memory().current
    const chat = new Session(p)
    const first = chat.ask('What?', { maxTokens: 20, minLength: 30 })
    await t.throwsAsync(chat.ask('And?'), { code: 'ERR_VALUE', message: /another turn/ })
    await first
    const stop = new AbortController()
    const reason = new Error('stopped by the test')
    setTimeout(() => stop.abort(reason), 10)
    await t.throwsAsync(chat.ask('More', { maxTokens: 150, minLength: 200, signal: stop.signal }), { is: reason })
    await t.throwsAsync(chat.ask('Still there?'), { code: 'ERR_DISPOSED' })
    const left = new Session(p)
    for await (const _ of left.stream('What?', { maxTokens: 20, minLength: 30 })) break
    await t.throwsAsync(left.ask('Still there?'), { code: 'ERR_DISPOSED' })
    await collect()
    t.true(memory().current <= before, `${memory().current} above ${before}`)
    t.throws(() => new Session(p, { template: 'nonsense' as 'plain' }), { code: 'ERR_CONFIG', message: /vicuna/ })
    p.dispose()
  },
)
