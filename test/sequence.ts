import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { Random } from '../dist/data/random.js'
import { DeemError } from '../dist/errors.js'
import type { HostTensor } from '../dist/host-tensor.js'
import { buildSequences, type Document, image, labels, type SequenceOptions, text } from '../dist/sequence.js'

const ids = { bos: 1, eos: 2, pad: 9, soi: 7, image: 8 }
const tokenizer = { ids, encode: (words: string): number[] => words.split(' ').filter(Boolean).map(Number) }
const base: SequenceOptions = { tokenizer, imageTokens: 2 }
const numbers = (tensor: HostTensor): number[] => Array.from(tensor.data as ArrayLike<number | bigint>, Number)
const rowsOf = (tensor: HostTensor): number[][] => {
  const [rows = 0, width = 0] = tensor.shape
  const flat = numbers(tensor)
  return Array.from({ length: rows }, (_, r) => flat.slice(r * width, (r + 1) * width))
}
const _ = -100

interface Case {
  name: string
  documents: Document<string>[]
  options?: Partial<SequenceOptions>
  ids: number[][]
  labels: number[][]
  keep?: number[][]
  counts?: number[]
  starts?: number[]
  offset?: number[]
  images?: string[]
  cuts?: { document: number; ids: number; images: number }[]
}

const cases: Case[] = [
  { name: 'text alone', documents: [[text('3 4')]], ids: [[1, 3, 4, 2]], labels: [[3, 4, 2]], counts: [0], starts: [] },
  { name: 'an empty document', documents: [[]], ids: [[1, 2]], labels: [[2]] },
  {
    name: 'no bos, no eos',
    documents: [[text('3 4')]],
    options: { bos: false, eos: false },
    ids: [[3, 4]],
    labels: [[4]],
  },
  {
    name: 'an image first: its start is no target',
    documents: [[image('a'), text('3')]],
    ids: [[1, 7, 8, 8, 3, 2]],
    labels: [[_, _, _, 3, 2]],
    counts: [1],
    starts: [0],
    images: ['a'],
  },
  {
    name: 'an image after text: its start is a target',
    documents: [[text('3'), image('a'), image('b'), text('4')]],
    ids: [[1, 3, 7, 8, 8, 7, 8, 8, 4, 2]],
    labels: [[3, 7, _, _, 7, _, _, 4, 2]],
    counts: [2],
    starts: [0, 0],
    images: ['a', 'b'],
  },
  {
    name: 'right padding',
    documents: [[text('3 4 5')], [image('a')]],
    ids: [
      [1, 3, 4, 5, 2],
      [1, 7, 8, 8, 2],
    ],
    labels: [
      [3, 4, 5, 2],
      [_, _, _, 2],
    ],
  },
  {
    name: 'padding to a length, right',
    documents: [[text('3')], [text('3 4')]],
    options: { padTo: 6 },
    ids: [
      [1, 3, 2, 9, 9, 9],
      [1, 3, 4, 2, 9, 9],
    ],
    keep: [
      [1, 1, 1, 0, 0, 0],
      [1, 1, 1, 1, 0, 0],
    ],
    labels: [
      [3, 2, _, _, _],
      [3, 4, 2, _, _],
    ],
  },
  {
    name: 'left padding moves document starts and prompts',
    documents: [[image('a'), text('3', { loss: false }), text('4')], [text('3 4 5 6 3 4')]],
    options: { padding: 'left' },
    ids: [
      [9, 1, 7, 8, 8, 3, 4, 2],
      [1, 3, 4, 5, 6, 3, 4, 2],
    ],
    keep: [
      [0, 1, 1, 1, 1, 1, 1, 1],
      [1, 1, 1, 1, 1, 1, 1, 1],
    ],
    labels: [
      [_, _, _, _, _, 4, 2],
      [3, 4, 5, 6, 3, 4, 2],
    ],
    starts: [1],
    offset: [6, 0],
  },
  {
    name: 'only answers are learnt, each span by itself',
    documents: [[image('a'), text('3', { loss: false }), text('4'), text('5', { loss: false }), text('6')]],
    ids: [[1, 7, 8, 8, 3, 4, 5, 6, 2]],
    labels: [[_, _, _, _, 4, _, 6, 2]],
    offset: [5],
  },
  {
    name: 'nothing learnt: the offset covers the row',
    documents: [[text('3 4', { loss: false })]],
    ids: [[1, 3, 4, 2]],
    labels: [[_, _, _]],
    offset: [4],
  },
  {
    name: 'an image inside a prompt keeps its start silent',
    documents: [[text('3', { loss: false }), image('a', { loss: false }), text('4')]],
    ids: [[1, 3, 7, 8, 8, 4, 2]],
    labels: [[_, _, _, _, 4, 2]],
    offset: [5],
  },
  {
    name: 'text before the first image is silent where asked',
    documents: [[text('3'), image('a'), text('4')], [text('5')]],
    options: { noImageCondition: true },
    ids: [
      [1, 3, 7, 8, 8, 4, 2],
      [1, 5, 2, 9, 9, 9, 9],
    ],
    labels: [
      [_, 7, _, _, 4, 2],
      [_, _, _, _, _, _],
    ],
  },
  {
    name: 'packing, first fit in order',
    documents: [[text('3 4')], [image('a'), text('5')], [text('6')], [image('b')]],
    options: { pack: true, maxLength: 8 },
    ids: [
      [1, 3, 4, 2, 1, 6, 2, 9],
      [1, 7, 8, 8, 5, 2, 9, 9],
      [1, 7, 8, 8, 2, 9, 9, 9],
    ].map((row) => row.slice(0, 7)),
    labels: [
      [3, 4, 2, _, 6, 2],
      [_, _, _, 5, 2, _],
      [_, _, _, 2, _, _],
    ],
    counts: [0, 1, 1],
    starts: [0, 0],
    images: ['a', 'b'],
  },
  {
    name: 'packed documents start where they start',
    documents: [
      [text('3'), image('a')],
      [image('b'), text('4')],
    ],
    options: { pack: true, maxLength: 12, padding: 'left', padTo: 13 },
    ids: [[9, 1, 3, 7, 8, 8, 2, 1, 7, 8, 8, 4, 2]],
    labels: [[_, 3, 7, _, _, 2, _, _, _, _, 4, 2]],
    counts: [2],
    starts: [1, 7],
  },
  {
    name: 'text cut at its end, without eos',
    documents: [[text('3 4 5 6')]],
    options: { maxLength: 4 },
    ids: [[1, 3, 4, 5]],
    labels: [[3, 4, 5]],
    cuts: [{ document: 0, ids: 2, images: 0 }],
  },
  {
    name: 'an image that does not fit goes whole, and what follows with it',
    documents: [[text('3'), image('a'), text('4'), image('b'), text('5')]],
    options: { maxLength: 8 },
    ids: [[1, 3, 7, 8, 8, 4]],
    labels: [[3, 7, _, _, 4]],
    images: ['a'],
    counts: [1],
    starts: [0],
    cuts: [{ document: 0, ids: 2, images: 1 }],
  },
  {
    name: 'the end kept: bos, then whole parts',
    documents: [[text('3'), image('a'), text('4'), image('b'), text('5')]],
    options: { maxLength: 8, truncate: 'end' },
    ids: [[1, 4, 7, 8, 8, 5, 2]],
    labels: [[4, 7, _, _, 5, 2]],
    images: ['b'],
    cuts: [{ document: 0, ids: 1, images: 1 }],
  },
  {
    name: 'ids in place of words may hold a start of image',
    documents: [[text([3, 7])]],
    options: { eos: false },
    ids: [[1, 3, 7]],
    labels: [[3, 7]],
    counts: [0],
  },
]

for (const one of cases) {
  test(one.name, (t) => {
    const built = buildSequences(one.documents, { ...base, ...one.options })
    t.deepEqual(rowsOf(built.inputs.text_ids), one.ids)
    t.deepEqual(rowsOf(built.inputs.labels), one.labels)
    t.deepEqual(
      rowsOf(built.inputs.attention_mask),
      one.keep ?? one.ids.map((row) => row.map((id) => (id === ids.pad ? 0 : 1))),
    )
    if (one.counts) t.deepEqual(numbers(built.inputs.num_image_per_seq), one.counts)
    if (one.starts) t.deepEqual(numbers(built.inputs.nearest_bos_idxs), one.starts)
    t.deepEqual(numbers(built.inputs.prompt_offset), one.offset ?? one.ids.map(() => 0))
    if (one.images) t.deepEqual(built.images, one.images)
    t.deepEqual(built.cuts, one.cuts ?? [])
  })
}

const rejected: [string, Document<string>[], Partial<SequenceOptions>][] = [
  ['image tokens in text', [[text('3 8')]], {}],
  ['a start of image in words', [[text('7')]], {}],
  ['bos in text', [[text([1])]], {}],
  ['packing without a length', [[text('3')]], { pack: true }],
  ['rows longer than padTo', [[text('3 4 5')]], { padTo: 3 }],
  ['no slots', [[image('a')]], { imageTokens: 0 }],
  ['a length that holds nothing', [[text('3')]], { maxLength: 1 }],
  ['documents too long where cutting is an error', [[text('3 4 5')]], { maxLength: 4, truncate: 'error' }],
]
for (const [name, documents, options] of rejected) {
  test(`${name}: refused`, (t) => {
    t.throws(() => buildSequences(documents, { ...base, ...options }), { instanceOf: DeemError, code: 'ERR_VALUE' })
  })
}

test('no documents give no rows', (t) => {
  const built = buildSequences([], base)
  t.deepEqual(built.inputs.text_ids.shape, [0, 0])
  t.deepEqual(built.inputs.labels.shape, [0, 0])
})

test('random documents keep their rules', (t) => {
  for (let trial = 0; trial < 400; trial++) {
    const random = new Random(5, trial)
    const maxLength = random.bool(0.8) ? 2 + random.int(30) : undefined
    const options: SequenceOptions = {
      ...base,
      imageTokens: 1 + random.int(4),
      ...(maxLength === undefined ? {} : { maxLength, pack: random.bool() }),
      padding: random.pick(['left', 'right'] as const),
      truncate: random.pick(['start', 'end'] as const),
      eos: random.bool(0.8),
    }
    let next = 0
    const documents = Array.from({ length: 1 + random.int(6) }, () =>
      Array.from({ length: random.int(6) }, () =>
        random.bool(0.4)
          ? image(next++)
          : text(
              Array.from({ length: random.int(8) }, () => 3 + random.int(4)),
              { loss: random.bool(0.7) },
            ),
      ),
    )
    const built = buildSequences(documents, options)
    t.deepEqual(built, buildSequences(documents, options), 'the same twice')
    const rows = rowsOf(built.inputs.text_ids)
    const keep = rowsOf(built.inputs.attention_mask)
    const targets = rowsOf(built.inputs.labels)
    const counts = numbers(built.inputs.num_image_per_seq)
    const starts = numbers(built.inputs.nearest_bos_idxs)
    const offsets = numbers(built.inputs.prompt_offset)
    if (maxLength !== undefined) t.true((rows[0]?.length ?? 0) <= maxLength)

    let seen = 0
    rows.forEach((row, r) => {
      const real = row.filter((_id, j) => keep[r]?.[j] === 1)
      // Padding is one run on its side.
      t.is(keep[r]?.join('').replace(options.padding === 'left' ? /^0*1*$/ : /^1*0*$/, ''), '')
      t.is(real.filter((id) => id === ids.image).length, (counts[r] as number) * options.imageTokens)
      let lastBos = -1
      row.forEach((id, j) => {
        if (id === ids.bos) lastBos = j
        if (id !== ids.soi) return
        t.deepEqual(
          row.slice(j + 1, j + 1 + options.imageTokens),
          Array(options.imageTokens).fill(ids.image),
          'an image is whole',
        )
        t.is(starts[seen++], lastBos)
      })
      targets[r]?.forEach((target, j) => {
        t.true(target === _ || target === row[j + 1])
        t.true(target === _ || built.lossMask.data[r * row.length + j + 1] === 1)
        if (target !== _) t.true(j + 1 >= (offsets[r] as number))
      })
    })
    t.is(seen, built.images.length)
    t.is(starts.length, built.images.length)
    const dropped = built.cuts.reduce((sum, cut) => sum + cut.images, 0)
    t.is(built.images.length + dropped, next)
    // Reading order follows the documents' order in the rows.
    const order = built.documents
      .flat()
      .flatMap((d) => (documents[d] ?? []).flatMap((part) => (part.type === 'image' ? [part.image] : [])))
    t.deepEqual(
      built.images,
      order.filter((picture) => built.images.includes(picture)),
    )
    t.deepEqual(
      built.documents.flat().sort((a, b) => a - b),
      documents.map((_d, i) => i),
    )
  }
})

const folder = fileURLToPath(new URL('../test/fixtures/model/deem_nano', import.meta.url))
test('the rows and labels of the reference batch', (t) => {
  const inputs = integers(join(folder, 'inputs.safetensors'))
  const outputs = integers(join(folder, 'outputs.safetensors'))
  const special = { bos: 1, eos: 2, pad: 511, soi: 512, image: 513 }
  const options: SequenceOptions = {
    tokenizer: { ids: special, encode: () => [] },
    imageTokens: 5,
    maxLength: 39,
    pack: true,
  }
  const [rows = 0, length = 0] = inputs.text_ids?.shape ?? []
  const flat = inputs.text_ids?.data ?? []
  const all = Array.from({ length: rows }, (_r, r) => flat.slice(r * length, (r + 1) * length)).flatMap((row) =>
    documentsOf(row, special),
  )
  t.is(all.length, 3)

  const built = buildSequences(all, { ...options, padTo: length })
  for (const name of ['text_ids', 'attention_mask', 'num_image_per_seq', 'nearest_bos_idxs'] as const) {
    t.deepEqual(numbers(built.inputs[name]), inputs[name]?.data, name)
  }
  t.deepEqual(numbers(built.inputs.labels), outputs.labels?.data)
  t.deepEqual(
    numbers(buildSequences(all, { ...options, noImageCondition: true }).inputs.labels),
    outputs['noimage_cond.labels']?.data,
  )
  const promptOffset = {
    shape: [2],
    dtype: 'i64' as const,
    data: BigInt64Array.from(inputs.prompt_offset?.data ?? [], BigInt),
  }
  t.deepEqual(numbers(labels(built.inputs, special, { promptOffset })), outputs['prompt_offset.labels']?.data)
})

/** Undoes a row: bos opens a document, eos closes it, a start of image stands for its slots. */
function documentsOf(row: number[], special: typeof ids): Document<string>[] {
  const documents: (ReturnType<typeof text> | ReturnType<typeof image<string>>)[][] = []
  for (const id of row) {
    if (id === special.bos) documents.push([])
    else if (id === special.soi) documents.at(-1)?.push(image('picture'))
    else if (![special.eos, special.pad, special.image].includes(id)) documents.at(-1)?.push(text([id]))
  }
  return documents
}

/** The i64 tensors of a safetensors file. */
function integers(file: string): Record<string, { shape: number[]; data: number[] }> {
  const bytes = readFileSync(file)
  const size = Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + size)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >
  const found = Object.entries(header).filter(([, { dtype }]) => dtype === 'I64')
  return Object.fromEntries(
    found.map(
      ([
        name,
        {
          shape,
          data_offsets: [from, to],
        },
      ]) => {
        const data = Array.from({ length: (to - from) / 8 }, (_v, i) =>
          Number(bytes.readBigInt64LE(8 + size + from + i * 8)),
        )
        return [name, { shape, data }]
      },
    ),
  )
}
