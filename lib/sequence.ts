import { DeemError } from './errors.js'
import { type HostTensor, hostTensor, i64 } from './host-tensor.js'
import type { SpecialIds, Tokenizer } from './tokenizer/tokenizer.js'

/** Words, or ids where the caller has them already. `loss: false` keeps a part (a question, a system prompt) out of the loss. */
export interface TextPart {
  type: 'text'
  text: string | readonly number[]
  loss: boolean
}
/** A picture; `image` is whatever the caller turns into pixels later. The loss is that of its start token. */
export interface ImagePart<I> {
  type: 'image'
  image: I
  loss: boolean
}
export type Part<I> = TextPart | ImagePart<I>
/** Text and pictures in reading order. */
export type Document<I> = readonly Part<I>[]

export function text(words: string | readonly number[], options: { loss?: boolean } = {}): TextPart {
  return { type: 'text', text: words, loss: options.loss ?? true }
}
export function image<I>(picture: I, options: { loss?: boolean } = {}): ImagePart<I> {
  return { type: 'image', image: picture, loss: options.loss ?? true }
}

/** How documents become rows. */
export interface SequenceOptions {
  tokenizer: Pick<Tokenizer, 'encode' | 'ids'>
  /** Slots per image, after its start-of-image token. */
  imageTokens: number
  /** Longest row; longer documents are cut, see {@link truncate}. */
  maxLength?: number
  /** Pad every row to this length instead of to the longest row. */
  padTo?: number
  /** Several documents per row, first fit in order, up to `maxLength` (which it needs). */
  pack?: boolean
  padding?: 'right' | 'left'
  /** What of a document that is too long stays: its start, its end (bos stays too), or nothing: throw. */
  truncate?: 'start' | 'end' | 'error'
  /** Both on by default; prompts for generation leave eos off. A document that was cut at its end gets none. */
  bos?: boolean
  eos?: boolean
  /** Text before a document's first image carries no loss. */
  noImageCondition?: boolean
}

/** Something a document lost. */
export interface Cut {
  document: number
  /** Text ids and whole images that did not fit. */
  ids: number
  images: number
}

/** What the engine takes, under the names of the fixtures. */
export interface SequenceInputs {
  /** [rows, length] */
  text_ids: HostTensor<'i64'>
  /** [rows, length], 0 on padding */
  attention_mask: HostTensor<'i64'>
  /** [rows] */
  num_image_per_seq: HostTensor<'i64'>
  /** [images], per image in reading order: the column of its document's first token */
  nearest_bos_idxs: HostTensor<'i64'>
  /** [rows], how many leading ids carry no loss */
  prompt_offset: HostTensor<'i64'>
  /** [rows, length - 1], shifted, -100 where ignored: {@link labels} under the loss mask. Finer than `prompt_offset`. */
  labels: HostTensor<'i64'>
}

export interface Sequences<I> {
  inputs: SequenceInputs
  /** [rows, length], 1 where predicting the id counts as far as the documents say. */
  lossMask: HostTensor<'u8'>
  /** Pictures in the order of their slots; dropped ones are not among them. */
  images: I[]
  /** Per row, the documents it holds. */
  documents: number[][]
  /** Documents that lost something; empty when all fitted. */
  cuts: Cut[]
}

/** Ids that cannot be parted: one text token, or an image's start token and slots. */
interface Unit<I> {
  ids: number[]
  loss: boolean
  image?: { value: I }
}
interface Laid<I> {
  index: number
  ids: number[]
  loss: boolean[]
  images: I[]
}

/**
 * Documents to padded rows, with everything the losses need. The same documents and options give the same rows.
 *
 * @example
 * ```ts
 * import { buildSequences, image, text, Tokenizer } from 'deem'
 *
 * const tokenizer = await Tokenizer.load('vicuna-7b')
 * const { inputs, images } = buildSequences(
 *   [[image('cat.png'), text('What is this? ', { loss: false }), text('A cat.')]],
 *   { tokenizer, imageTokens: 64, maxLength: 2048 },
 * )
 * console.log(inputs.text_ids.shape, images) // [1, L], ['cat.png']
 * ```
 */
export function buildSequences<I>(documents: readonly Document<I>[], options: SequenceOptions): Sequences<I> {
  checkOptions(options)
  const cuts: Cut[] = []
  const laid = documents.map((document, index) => layOut(document, index, options, cuts))
  const rows = intoRows(laid, options)
  const lengths = rows.map((row) => row.reduce((sum, one) => sum + one.ids.length, 0))
  const longest = Math.max(0, ...lengths)
  const length = options.padTo ?? longest
  if (length < longest)
    throw new DeemError('ERR_VALUE', `[sequence] padTo must be at least the longest row, ${longest}, but got ${length}`)

  const ids = new Array<number>(rows.length * length).fill(options.tokenizer.ids.pad)
  const keep = new Array<number>(rows.length * length).fill(0)
  const lossMask = new Uint8Array(rows.length * length)
  const starts: number[] = []
  const images: I[] = []
  rows.forEach((row, r) => {
    let column = options.padding === 'left' ? length - (lengths[r] as number) : 0
    for (const one of row) {
      for (const value of one.images) {
        images.push(value)
        starts.push(column)
      }
      one.ids.forEach((id, i) => {
        const at = r * length + column + i
        ids[at] = id
        keep[at] = 1
        lossMask[at] = one.loss[i] ? 1 : 0
      })
      column += one.ids.length
    }
  })

  const shape = [rows.length, length]
  const seen = { text_ids: i64(ids, shape), attention_mask: i64(keep, shape) }
  const mask = hostTensor(lossMask, shape)
  const noImageCondition = options.noImageCondition === true
  const targets = labels(seen, options.tokenizer.ids, { lossMask: mask, noImageCondition })
  return {
    inputs: {
      ...seen,
      num_image_per_seq: i64(rows.map((row) => row.reduce((sum, one) => sum + one.images.length, 0))),
      nearest_bos_idxs: i64(starts),
      prompt_offset: promptOffsets(labels(seen, options.tokenizer.ids, { noImageCondition }), targets),
      labels: targets,
    },
    lossMask: mask,
    images,
    documents: rows.map((row) => row.map((one) => one.index)),
    cuts,
  }
}

/**
 * Next-token targets `[rows, length - 1]`: target j is id j + 1, or -100 on padding, image slots, bos, a start-of-image right
 * after bos, and wherever the options say.
 */
export function labels(
  inputs: Pick<SequenceInputs, 'text_ids' | 'attention_mask'>,
  special: SpecialIds,
  options: { promptOffset?: HostTensor<'i64'>; lossMask?: HostTensor<'u8'>; noImageCondition?: boolean } = {},
): HostTensor<'i64'> {
  const { shape, data } = inputs.text_ids
  const [rows = 0, length = 0] = shape
  const ignored = -100n
  const width = Math.max(0, length - 1)
  const out = new BigInt64Array(rows * width).fill(ignored)
  const [bos, soi, image, pad] = [special.bos, special.soi, special.image, special.pad].map(BigInt)
  for (let r = 0; r < rows; r++) {
    const offset = Number(options.promptOffset?.data[r] ?? 0n)
    let lastBos = 0
    let lastImage = -1
    for (let j = 0; j < length; j++) {
      const at = r * length + j
      const id = data[at] as bigint
      if (id === bos) lastBos = j
      if (id === soi) lastImage = j
      if (j === 0 || j < offset) continue
      if (options.noImageCondition && lastImage < lastBos) continue
      if (options.lossMask?.data[at] === 0) continue
      if (id === pad || id === image || id === bos || inputs.attention_mask.data[at] === 0n) continue
      if (id === soi && data[at - 1] === bos) continue
      out[r * width + j - 1] = id
    }
  }
  return hostTensor(out, [rows, width])
}

function checkOptions(options: SequenceOptions): void {
  const whole = (name: string, value: number | undefined, least: number): void => {
    if (value !== undefined && !(Number.isInteger(value) && value >= least)) {
      throw new DeemError('ERR_VALUE', `[sequence] ${name} must be an integer of at least ${least} but got ${value}`)
    }
  }
  whole('imageTokens', options.imageTokens, 1)
  whole('maxLength', options.maxLength, 2)
  whole('padTo', options.padTo, 1)
  if (options.pack && options.maxLength === undefined)
    throw new DeemError('ERR_VALUE', '[sequence] packing needs maxLength')
}

function layOut<I>(document: Document<I>, index: number, options: SequenceOptions, cuts: Cut[]): Laid<I> {
  const { bos, eos } = options.tokenizer.ids
  const units = document.flatMap((part) => unitsOf(part, index, options))
  const head: Unit<I>[] = options.bos === false ? [] : [{ ids: [bos], loss: false }]
  // The end token belongs to the last part: it is learnt where that part's text is.
  const tail: Unit<I>[] =
    options.eos === false ? [] : [{ ids: [eos], loss: document[document.length - 1]?.loss ?? true }]
  const whole = [...head, ...units, ...tail]
  const room = options.maxLength ?? Number.POSITIVE_INFINITY
  if (size(whole) <= room) return joinUnits(whole, index)

  const how = options.truncate ?? 'start'
  if (how === 'error') {
    throw new DeemError(
      'ERR_VALUE',
      `[sequence] documents must fit ${room} ids but document ${index} has ${size(whole)}`,
    )
  }
  const kept =
    how === 'start'
      ? [...head, ...fitting(units, room - size(head))]
      : [...head, ...fitting([...units, ...tail].reverse(), room - size(head)).reverse()]
  const lost = (list: readonly Unit<I>[], pictures: boolean): number =>
    list.filter((unit) => (unit.image !== undefined) === pictures).length
  cuts.push({
    document: index,
    ids: lost(whole, false) - lost(kept, false),
    images: lost(whole, true) - lost(kept, true),
  })
  return joinUnits(kept, index)
}

/** The longest run of leading units within `room`. */
function fitting<I>(units: readonly Unit<I>[], room: number): Unit<I>[] {
  let used = 0
  const end = units.findIndex((unit) => {
    used += unit.ids.length
    return used > room
  })
  return end < 0 ? [...units] : units.slice(0, end)
}

function unitsOf<I>(part: Part<I>, index: number, options: SequenceOptions): Unit<I>[] {
  const { ids, encode } = { ids: options.tokenizer.ids, encode: options.tokenizer.encode.bind(options.tokenizer) }
  if (part.type === 'image') {
    const slots = new Array<number>(options.imageTokens).fill(ids.image)
    return [{ ids: [ids.soi, ...slots], loss: part.loss, image: { value: part.image } }]
  }
  const list = typeof part.text === 'string' ? encode(part.text) : part.text
  for (const id of list) {
    // Slots without a picture and false document starts would shift every image after them.
    if (id === ids.image || id === ids.bos || (id === ids.soi && typeof part.text === 'string')) {
      throw new DeemError(
        'ERR_VALUE',
        `[sequence] text must not hold bos or image tokens but document ${index} has id ${id}`,
      )
    }
  }
  return list.map((id) => ({ ids: [id], loss: part.loss }))
}

function joinUnits<I>(units: readonly Unit<I>[], index: number): Laid<I> {
  return {
    index,
    ids: units.flatMap((unit) => unit.ids),
    loss: units.flatMap((unit) => unit.ids.map(() => unit.loss)),
    images: units.flatMap((unit) => (unit.image === undefined ? [] : [unit.image.value])),
  }
}

function intoRows<I>(laid: readonly Laid<I>[], options: SequenceOptions): Laid<I>[][] {
  if (!options.pack) return laid.map((one) => [one])
  const room = options.maxLength as number
  const rows: { used: number; list: Laid<I>[] }[] = []
  for (const one of laid) {
    const row = rows.find(({ used }) => used + one.ids.length <= room)
    if (row === undefined) rows.push({ used: one.ids.length, list: [one] })
    else {
      row.used += one.ids.length
      row.list.push(one)
    }
  }
  return rows.map(({ list }) => list)
}

/** Per row, the column of the first target the loss mask leaves, or 0 where it took none before that. */
function promptOffsets(all: HostTensor<'i64'>, masked: HostTensor<'i64'>): HostTensor<'i64'> {
  const [rows = 0, width = 0] = all.shape
  const offsets = Array.from({ length: rows }, (_, r) => {
    const first = (targets: HostTensor<'i64'>): number => {
      const at = targets.data.subarray(r * width, (r + 1) * width).findIndex((id) => id !== -100n)
      return at < 0 ? width : at
    }
    const [any, left] = [first(all), first(masked)]
    return left > any ? left + 1 : 0
  })
  return i64(offsets)
}

function size<I>(units: readonly Unit<I>[]): number {
  return units.reduce((sum, unit) => sum + unit.ids.length, 0)
}
