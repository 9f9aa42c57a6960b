import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { DeemError } from '../dist/errors.js'
import { addedTokens, Tokenizer, type TokenizerJson, trainWordTokenizer } from '../dist/tokenizer/index.js'
import { generator } from './_harness/random.js'

// A byte-fallback BPE in LLaMA's arrangement, small enough to write out: bytes, the word mark, and two merges.
function byteJson(): TokenizerJson {
  const pieces = [
    '<unk>',
    '<s>',
    '</s>',
    ...Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`),
    '▁',
    'a',
    'b',
    '▁a',
    '▁ab',
  ]
  const added = ['<unk>', '<s>', '</s>'].map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }))
  return {
    added_tokens: added,
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: [
        ['▁', 'a'],
        ['▁a', 'b'],
      ],
    },
  }
}

const code = (wanted: string) => ({ instanceOf: DeemError, code: wanted })

test('added tokens follow the vocabulary of a file that lacks them', (t) => {
  const tokenizer = new Tokenizer(byteJson())
  t.is(tokenizer.baseVocabSize, 264)
  t.deepEqual(
    addedTokens.map((token) => tokenizer.id(token)),
    [264, 265, 266, 267, 268, 269],
  )
  t.is(tokenizer.vocabSize, 270)
  t.like(tokenizer.ids, { bos: 1, eos: 2, soi: 264, image: 265 })
  t.deepEqual(tokenizer.encode('ab<ref>a</ref>', { bos: true, eos: true }), [1, 263, 266, 262, 267, 2])
})

test('added tokens can start later, where the model pads its vocabulary', (t) => {
  const tokenizer = new Tokenizer(byteJson(), {}, { baseVocabSize: 320, padId: 319 })
  t.is(tokenizer.id('<|startofimage|>'), 320)
  t.is(tokenizer.ids.pad, 319)
  t.deepEqual(tokenizer.encode('a<|sniffer|>'), [262, 321])
  t.throws(() => new Tokenizer(byteJson(), {}, { baseVocabSize: 100 }), code('ERR_VALUE'))
})

for (const [text, decoded] of [
  ['', ''],
  ['a b', 'a b'],
  ['  a', '  a'],
  ['a .', 'a .'],
  ['👍🏽 é', '👍🏽 é'],
  ['\ufeffa', '\ufeffa'],
  ['a\u0000b\n', 'a\u0000b\n'],
] as const) {
  test(`code points ${[...text].map((c) => c.codePointAt(0)?.toString(16)).join(' ')} survive bytes`, (t) => {
    const tokenizer = new Tokenizer(byteJson())
    t.is(tokenizer.decode(tokenizer.encode(text, { bos: true, eos: true })), decoded)
  })
}

test('broken bytes decode to one replacement character each', (t) => {
  const tokenizer = new Tokenizer(byteJson())
  t.is(tokenizer.decode([260, 3 + 0xe2, 3 + 0x82, 261]), 'a\ufffd\ufffdb')
})

test('tokens in text are ids, or words where asked', (t) => {
  const tokenizer = new Tokenizer(byteJson())
  t.true(tokenizer.encode('</s>').includes(2))
  t.false(tokenizer.encode('</s> <|sniffer|>', { special: false }).some((id) => id === 2 || id >= 264))
  t.is(tokenizer.decode(tokenizer.encode('</s> <|sniffer|>', { special: false })), '</s> <|sniffer|>')
  t.is(tokenizer.decode([1, 262, 264, 265, 2]), 'a')
  t.is(tokenizer.decode([262, 265], { special: true }), 'a<|sniffer|>')
})

test('a word tokenizer knows its words and no others', (t) => {
  const tokenizer = trainWordTokenizer(['A red cat, a dog.', 'is it a cat?'])
  t.deepEqual(tokenizer.ids, {
    bos: 1,
    eos: 2,
    pad: 3,
    soi: tokenizer.baseVocabSize,
    image: tokenizer.baseVocabSize + 1,
  })
  t.is(tokenizer.id('a'), 4)
  t.is(tokenizer.id('cat'), 5)
  t.deepEqual(tokenizer.encode('cat'), [5])
  t.deepEqual(tokenizer.encode('cats'), [0])
  t.deepEqual(tokenizer.encode('CAT'), [5])
  t.is(
    tokenizer.decode(tokenizer.encode('a red cat, is it a dog?', { bos: true, eos: true })),
    'a red cat, is it a dog?',
  )
  t.deepEqual(trainWordTokenizer(['b a', 'a b']).json, trainWordTokenizer(['a b', 'b a']).json)
  t.is(trainWordTokenizer(['a a b b c'], { minCount: 2 }).id('c'), undefined)
  t.is(trainWordTokenizer(['a a b b c'], { maxWords: 1 }).id('b'), undefined)
  t.throws(() => trainWordTokenizer([' ']), code('ERR_VALUE'))
})

test('what was saved loads as it was', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'deem-tokenizer-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const tokenizer = trainWordTokenizer(['one two three 3'])
  await tokenizer.save(folder)
  for (const path of [folder, join(folder, 'tokenizer.json')]) {
    const loaded = await Tokenizer.load(path)
    t.deepEqual(loaded.json, tokenizer.json)
    t.deepEqual(loaded.ids, tokenizer.ids)
    t.is(loaded.baseVocabSize, tokenizer.baseVocabSize)
  }
  await t.throwsAsync(Tokenizer.load(join(folder, 'nothing')), code('ERR_IO'))
  writeFileSync(join(folder, 'tokenizer.json'), '{"model":')
  await t.throwsAsync(Tokenizer.load(folder), code('ERR_FORMAT'))
})

const partly = byteJson()
partly.added_tokens.push({ id: 300, content: '<ref>', special: true })
for (const [name, json, config] of [
  ['no model', {}, {}],
  ['not an object', null, {}],
  ['an empty vocabulary', { ...byteJson(), added_tokens: [], model: { type: 'BPE', vocab: {} } }, {}],
  ['an unknown model', { ...byteJson(), model: { type: 'Nothing', vocab: { a: 0 } } }, {}],
  ['some of the added tokens', partly, {}],
] as const) {
  test(`${name} is a format error`, (t) => {
    t.throws(() => new Tokenizer(json as unknown as TokenizerJson, config), code('ERR_FORMAT'))
  })
}

test('ids out of range do not decode', (t) => {
  const tokenizer = new Tokenizer(byteJson())
  for (const id of [-1, 270, 1.5, Number.NaN]) t.throws(() => tokenizer.decode([id]), code('ERR_INDEX'))
})

// ---- SentencePiece ----------------------------------------------------------------------------------------------------

const pieces = fileURLToPath(new URL('../test/fixtures/tokenizer/tokenizer.model', import.meta.url))

test('a tokenizer.model alone gives the tokenizer that its tokenizer.json is', async (t) => {
  const fast = await Tokenizer.load(pieces.replace('.model', '.json'))
  const slow = await Tokenizer.load(pieces, { baseVocabSize: 512 })
  t.is(slow.vocabSize, fast.vocabSize)
  for (let id = 0; id < fast.vocabSize; id++) t.is(slow.token(id), fast.token(id))
  t.deepEqual(slow.json.model['merges'], fast.json.model['merges'])
  t.deepEqual(slow.ids, fast.ids)
})

test('a damaged tokenizer.model is an error or another tokenizer, never a crash', async (t) => {
  const whole = readFileSync(pieces)
  const dir = mkdtempSync(join(tmpdir(), 'deem-pieces-'))
  const file = join(dir, 'tokenizer.model')
  const { uniform } = generator(11)
  const below = (n: number) => Math.floor(uniform() * n)
  const attempt = async (bytes: Uint8Array, what: string) => {
    writeFileSync(file, bytes)
    const made = await Tokenizer.load(file).catch((e: unknown) => e)
    t.true(made instanceof Tokenizer || DeemError.isInstance(made), `${what}: ${String(made)}`)
  }
  try {
    await attempt(new Uint8Array(), 'empty')
    for (let n = 1; n < whole.length; n += 211) await attempt(whole.subarray(0, n), `cut to ${n}`)
    for (let i = 0; i < 60; i++) {
      const bytes = Buffer.from(whole)
      for (let k = 0; k <= below(4); k++) bytes[below(bytes.length)] = below(256)
      await attempt(bytes, `damage ${i}`)
    }
  } finally {
    rmSync(dir, { recursive: true })
  }
})

test('what the library finds out only when it is used is an error with a code, too', async (t) => {
  const json = { ...byteJson(), post_processor: { type: 'TemplateProcessing', pair: [] } }
  const error = await t.throwsAsync(async () => new Tokenizer(json as TokenizerJson).encode('ab', { special: true }))
  t.true(DeemError.isInstance(error), String(error))
})
