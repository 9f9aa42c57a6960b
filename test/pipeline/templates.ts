// What stands around turns: known templates to the letter, Jinja templates of others, and what they must not be able to do.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { image, type Picture, Pipeline, type Prompt, Session, type SessionOptions, Tokenizer, text } from 'deem'
import { renderJinja } from '../../dist/pipeline/jinja.js'
import { chatTemplates, jinjaRender, surround, type Turn } from '../../dist/pipeline/template.js'
import { nano, nanoConfig } from '../_harness/nano.js'
import { generator } from '../_harness/random.js'

const pieces = fileURLToPath(new URL('../../test/fixtures/tokenizer', import.meta.url))
const tokenizer = await Tokenizer.load(pieces, { padId: 511 })
type Parts = Exclude<Prompt, string>

async function pipeline(own?: unknown): Promise<Pipeline> {
  const { model, inputs } = await nano()
  for (const x of Object.values(inputs)) x?.dispose()
  const config = { ...tokenizer.config, ...(own !== undefined && { chat_template: own }) }
  return new Pipeline({ model, tokenizer: new Tokenizer(tokenizer.json, config, { padId: 511 }), config: nanoConfig() })
}
function noise(seed: number): Picture {
  const { uniform } = generator(seed)
  return { dtype: 'f32', shape: [64, 64, 3], data: Float32Array.from({ length: 64 * 64 * 3 }, uniform) }
}
const [cat, dog] = [noise(1), noise(2)]
/** Parts as one can read them. */
const readable = (parts: Parts) =>
  parts.map((part) =>
    part.type === 'text' ? part.text : part.image === cat ? 'CAT' : part.image === dog ? 'DOG' : '?',
  )

const user = (...parts: Parts): Turn => ({ role: 'user', parts })
const assistant = (...words: Parts): Turn => ({
  role: 'assistant',
  parts: words.map((part) => (part.type === 'text' ? text(tokenizer.encode(part.text as string)) : part)),
  words,
})

test('known templates are those of the published code, to the letter', async (t) => {
  // The released evaluation joins its three strings by spaces and strips the ends.
  const question = 'What is it?'
  const [system, asked, answer] = [
    'You are a helpful assistant.\n\n',
    '## USER: Based on the image, please answer the question. {image}{question} Please provide an accurate answer within one word.\n',
    '## ASSISTANT: The answer is',
  ]
  const official = `${system} ${asked} ${answer}`.trim().replace('{question}', question).split('{image}')
  const turns = [user(image(cat), text(question))]
  t.deepEqual(readable(await surround(chatTemplates.vqa)(turns)), [official[0], 'CAT', official[1]])
  t.deepEqual(
    readable(await surround(chatTemplates.vicuna)([user(text('Hi')), assistant(text('Yes')), user(text('So'))])),
    [`${chatTemplates.vicuna.system}USER: Hi ASSISTANT:`, tokenizer.encode('Yes'), '</s>USER: So ASSISTANT:'],
  )
  t.deepEqual(readable(await surround(chatTemplates.plain)(turns)), ['CAT', question])
  // The model is asked just that.
  const p = await pipeline()
  using chat = new Session(p, { template: 'vqa' })
  const options = { maxTokens: 5, minLength: 9 }
  const whole = [text(official[0] as string), image(cat), text(official[1] as string)]
  t.deepEqual(await chat.ask([image(cat), text(question)], options), await p.generateText(whole, options))
  p.dispose()
})

const strings =
  "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
// As multimodal templates are written: pictures first, then words, of a list of parts.
const lists =
  "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
const conversation = [
  user(text('Look: '), image(cat), text('what?')),
  assistant(text('A cat.')),
  user(image(dog), text('this?')),
]
const rendered: Record<
  string,
  { jinja: string; image?: string; system?: string; turns: Turn[]; want: (string | number[])[] }
> = {
  'contents as strings': {
    jinja: strings,
    turns: conversation,
    want: ['<|user|>\nLook: ', 'CAT', 'what?\n<|assistant|>\nA cat.</s>\n<|user|>\n', 'DOG', 'this?\n<|assistant|>\n'],
  },
  'contents as lists': {
    jinja: lists,
    turns: conversation,
    want: ['USER: ', 'CAT', '\nLook:  what? ASSISTANT: A cat. USER: ', 'DOG', '\nthis? ASSISTANT:'],
  },
  'a system message': {
    jinja: strings,
    system: 'Be brief.',
    turns: [user(text('Hi'))],
    want: ['<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\n'],
  },
  'a picture of the model': {
    jinja: lists,
    turns: [user(text('Paint')), assistant(image(cat), text('There')), user(text('More'))],
    want: ['USER: Paint ASSISTANT: ', 'CAT', '\nThere USER: More ASSISTANT:'],
  },
  'another place for pictures': {
    jinja: lists.replace('<image>', '[IMG]'),
    image: '[IMG]',
    turns: [user(image(cat), text('[IMG] is text'))],
    want: ['USER: ', 'CAT', '\n[IMG] is text ASSISTANT:'],
  },
  'words that look like a place for pictures': {
    jinja: lists,
    turns: [user(text('<image> and <|startofimage|> and \ue000 are words'), image(dog))],
    want: ['USER: ', 'DOG', '\n<image> and <|startofimage|> and \ue000 are words ASSISTANT:'],
  },
  'a bos in the template': {
    jinja: `<s>${strings}`,
    turns: [user(text('Hi'))],
    want: ['<|user|>\nHi\n<|assistant|>\n'],
  },
}
const names = { bos: '<s>', eos: '</s>', pad: '<unk>' }

for (const [name, { jinja, image: place, system, turns, want }] of Object.entries(rendered))
  test(`Jinja: ${name}`, async (t) => {
    const render = jinjaRender({ jinja, ...(place !== undefined && { image: place }) }, { system, names })
    t.deepEqual(readable(await render(turns)), want)
  })

const upper = strings.replace(
  "{{ m['content'] }}",
  "{{ m['content'] | upper if m['role'] == 'assistant' else m['content'] }}",
)
const counting = `{{ messages | length }} turns. ${strings}`
const talks: Record<string, { template: SessionOptions['template'] & object; opened: number }> = {
  'one that only grows': { template: { jinja: strings }, opened: 1 },
  'one of lists': { template: { jinja: lists }, opened: 1 },
  'one that changes what the model said': { template: { jinja: upper }, opened: 1 },
  'one that changes its beginning': { template: { jinja: counting }, opened: 3 },
}
for (const [name, { template, opened }] of Object.entries(talks))
  test(`a conversation with a template is what one prompt would give: ${name}`, async (t) => {
    const p = await pipeline()
    const kinds: string[] = []
    const open = p.model.open.bind(p.model)
    using chat = new Session(p, { template })
    const render = jinjaRender(template as { jinja: string }, { system: undefined, names })
    const turns: Turn[] = []
    const prompts: Parts[] = [[text('What '), image(cat)], [text('And?')], [image(dog), text('this')]]
    for (const prompt of prompts) {
      p.model.open = (kind, ...rest) => {
        kinds.push(kind)
        return open(kind, ...rest)
      }
      const options = { choices: ['yes', 'no', 'never'] }
      const got = await chat.ask(prompt, options)
      p.model.open = open
      turns.push(user(...prompt))
      const want = await p.generateText((await render(turns)) as Parts, options)
      t.deepEqual(got.ids, want.ids)
      for (const [i, v] of got.logProbs.entries()) t.true(Math.abs(v - (want.logProbs[i] as number)) < 1e-4)
      turns.push(assistant(text(got.text)))
    }
    t.is(kinds.length, opened)
    p.dispose()
  })

test("the folder's own template", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'deem-template-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer.json))
  const load = () => Tokenizer.load(folder, { padId: 511 })
  t.is((await load()).chatTemplate, undefined)
  const write = (config: object) =>
    writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify({ ...tokenizer.config, ...config }))
  const list = [
    { name: 'tools', template: 'x' },
    { name: 'default', template: strings },
  ]
  for (const [own, want] of [
    [strings, strings],
    [list, strings],
    [[list[0]], undefined],
    [7, undefined],
  ]) {
    write({ chat_template: own })
    t.is((await load()).chatTemplate, want as string | undefined)
  }
  writeFileSync(join(folder, 'chat_template.jinja'), lists)
  const loaded = await load()
  t.is(loaded.chatTemplate, lists)
  await loaded.save(join(folder, 'copy'))
  t.is((await Tokenizer.load(join(folder, 'copy'), { padId: 511 })).chatTemplate, lists)

  const p = await pipeline(strings)
  const options = { maxTokens: 4, minLength: 9 }
  using own = new Session(p, { template: 'own', system: 'Short.' })
  using same = new Session(p, { template: { jinja: strings }, system: 'Short.' })
  t.deepEqual(await own.ask('Hi', options), await same.ask('Hi', options))
  p.dispose()
})

const hostile: Record<string, [string, RegExp]> = {
  'no template': ['{% for %}', /Unexpected/],
  'what throws': ["{{ raise_exception('only two roles') }}", /only two roles/],
  'what never ends': [
    '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}',
    /longer than 2 s/,
  ],
  'what fills the memory': ['{% for a in range(1000000000) %}{% endfor %}', /128 MB|longer/],
  'what doubles lists': [
    '{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}',
    /128 MB|longer/,
  ],
  'what doubles strings': [
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    /string length|128 MB/,
  ],
  'what writes too much': [`{% for a in range(300) %}{{ '${'x'.repeat(4000)}' }}{% endfor %}`, /1048576/],
  'what nests too deep': [`{{ ${'('.repeat(1e5)}1${')'.repeat(1e5)} }}`, /stack|128 MB/],
  'what reaches for the program': ["{{ ''.constructor.constructor('return process')().exit() }}", /function/],
}

test('templates of strangers end by themselves or are ended', async (t) => {
  for (const [name, [template, message]] of Object.entries(hostile))
    await t.throwsAsync(renderJinja(template, { messages: [] }, { seconds: 2 }), { code: 'ERR_FORMAT', message }, name)
  t.is(await renderJinja('{{ a }}', { a: 'still here' }), 'still here')
})

test('mistakes', async (t) => {
  const p = await pipeline()
  const bad = (template: unknown) => () => new Session(p, { template: template as 'plain' })
  t.throws(bad('own'), { code: 'ERR_CONFIG', message: /own/ })
  t.throws(bad('toString'), { code: 'ERR_CONFIG', message: /toString.*vicuna,vqa,own/ })
  t.throws(bad({ jinja: '' }), { code: 'ERR_CONFIG' })
  t.throws(bad({ jinja: lists, image: '' }), { code: 'ERR_CONFIG' })
  using unknownPlace = new Session(p, { template: { jinja: lists.replace('<image>', '[IMG]') } })
  await t.throwsAsync(unknownPlace.ask([image(cat), text('what?')]), {
    code: 'ERR_FORMAT',
    message: /0 times for 1 pictures/,
  })
  using ids = new Session(p, { template: { jinja: strings } })
  await t.throwsAsync(ids.ask([text([300])]), { code: 'ERR_VALUE', message: /string/ })
  const stop = new AbortController()
  const reason = new Error('stopped by the test')
  using left = new Session(p, { template: { jinja: strings } })
  const asked = left.ask('Hi', { signal: stop.signal })
  stop.abort(reason)
  await t.throwsAsync(asked, { is: reason })
  // Right after the call, before its process is there: what never ends must not run until its time is over.
  const start = performance.now()
  const again = new AbortController()
  const endless = renderJinja((hostile['what never ends'] as [string, RegExp])[0], {}, { signal: again.signal })
  again.abort(reason)
  await t.throwsAsync(endless, { is: reason })
  t.true(performance.now() - start < 4000)
  p.dispose()
})
