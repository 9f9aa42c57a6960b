/**
 * A SentencePiece `tokenizer.model` as the equivalent tokenizer.json, the way Hugging Face's own converters go, so that one
 * engine serves both. The file is a protobuf, `sentencepiece_model.proto` of google/sentencepiece; field numbers are from there.
 */
import { PbfReader } from 'pbf'
import { causedBy, DeemError } from '../errors.js'
import { addedToken, type TokenizerConfig, type TokenizerJson } from './json.js'

/** SentencePiece.Type */
const pieceType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const
/** TrainerSpec.ModelType */
const modelType = { unigram: 1, bpe: 2 } as const

const longestPiece = 1024

interface Piece {
  text: string
  score: number
  type: number
}
interface Model {
  pieces: Piece[]
  type: number
  byteFallback: boolean
  /** Ids, -1 where there is none. */
  special: { unk: number; bos: number; eos: number; pad: number }
  charsmap: Uint8Array
  addDummyPrefix: boolean
  removeExtraWhitespaces: boolean
}

/** Reads the bytes of a tokenizer.model. Throws ERR_FORMAT for what is no such model or has a feature that is not supported. */
export function fromSentencePiece(bytes: Uint8Array): { json: TokenizerJson; config: TokenizerConfig } {
  const model = parse(bytes)
  const { pieces, special } = model
  if (pieces.length === 0) fail('it holds no pieces')
  // Every cut of every piece is tried: a piece of a megabyte would take hours.
  const long = pieces.find((p) => p.text.length > longestPiece)
  if (long) fail(`a piece of ${long.text.length} characters is over the limit of ${longestPiece}`)
  const known = new Set(pieces.map((p) => p.text))
  if (known.size !== pieces.length) fail('a piece stands in it twice')
  const text = (id: number) => pieces[id]?.text
  const unk = text(special.unk)
  if (unk === undefined) fail(`its unknown piece ${special.unk} does not exist`)
  const added = pieces.flatMap(({ text, type }, id) =>
    type === pieceType.control || type === pieceType.unknown
      ? [addedToken(text, id)]
      : type === pieceType.userDefined
        ? [{ ...addedToken(text, id), special: false }]
        : [],
  )
  const json: TokenizerJson = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: { type: 'Sequence', normalizers: normalizers(model) },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(model.addDummyPrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model:
      model.type === modelType.bpe
        ? {
            type: 'BPE',
            dropout: null,
            unk_token: unk,
            continuing_subword_prefix: null,
            end_of_word_suffix: null,
            fuse_unk: true,
            byte_fallback: model.byteFallback,
            ignore_merges: false,
            vocab: Object.fromEntries(pieces.map((p, id) => [p.text, id])),
            merges: mergesOf(pieces),
          }
        : {
            type: 'Unigram',
            unk_id: special.unk,
            byte_fallback: model.byteFallback,
            vocab: pieces.map((p): [string, number] => [p.text, p.score]),
          },
  }
  const named = { bos_token: text(special.bos), eos_token: text(special.eos), pad_token: text(special.pad) }
  const config = Object.fromEntries(Object.entries({ ...named, unk_token: unk }).filter(([, v]) => v !== undefined))
  return { json, config }
}

/**
 * The file keeps scores, not merges: every way to put a piece together from two others is a merge, best score first, those of one
 * piece by the ids of their parts.
 */
function mergesOf(pieces: readonly Piece[]): [string, string][] {
  const ids = new Map(pieces.map((p, id) => [p.text, id]))
  const all: { parts: [string, string]; score: number }[] = []
  for (const { text, score } of pieces) {
    const characters = [...text]
    const own: { parts: [string, string]; order: [number, number] }[] = []
    for (let cut = 1; cut < characters.length; cut++) {
      const parts: [string, string] = [characters.slice(0, cut).join(''), characters.slice(cut).join('')]
      const [left, right] = [ids.get(parts[0]), ids.get(parts[1])]
      if (left !== undefined && right !== undefined) own.push({ parts, order: [left, right] })
    }
    own.sort((p, q) => p.order[0] - q.order[0] || p.order[1] - q.order[1])
    for (const { parts } of own) all.push({ parts, score })
  }
  return all.sort((p, q) => q.score - p.score).map(({ parts }) => parts)
}

function normalizers({ charsmap, addDummyPrefix, removeExtraWhitespaces }: Model): object[] {
  return [
    ...(charsmap.length > 0
      ? [{ type: 'Precompiled', precompiled_charsmap: Buffer.from(charsmap).toString('base64') }]
      : []),
    ...(removeExtraWhitespaces
      ? [
          { type: 'Strip', strip_left: true, strip_right: true },
          { type: 'Replace', pattern: { Regex: ' {2,}' }, content: ' ' },
        ]
      : []),
    ...(addDummyPrefix ? [{ type: 'Prepend', prepend: '▁' }] : []),
    { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
  ]
}

function parse(bytes: Uint8Array): Model {
  const model: Model = {
    pieces: [],
    type: modelType.unigram,
    byteFallback: false,
    special: { unk: 0, bos: 1, eos: 2, pad: -1 },
    charsmap: new Uint8Array(),
    addDummyPrefix: true,
    removeExtraWhitespaces: true,
  }
  try {
    new PbfReader(bytes).readFields((field, out: Model, pbf) => {
      if (field === 1) out.pieces.push(pbf.readMessage(readPiece, { text: '', score: 0, type: pieceType.normal }))
      else if (field === 2) pbf.readMessage(readTrainer, out)
      else if (field === 3) pbf.readMessage(readNormalizer, out)
    }, model)
  } catch (cause) {
    throw causedBy(cause, 'ERR_FORMAT', '[tokenizer] this is no SentencePiece model')
  }
  if (model.type !== modelType.unigram && model.type !== modelType.bpe) fail('it is neither a BPE nor a unigram model')
  return model
}

function readPiece(field: number, out: Piece, pbf: PbfReader): void {
  if (field === 1) out.text = pbf.readString()
  else if (field === 2) out.score = pbf.readFloat()
  else if (field === 3) out.type = pbf.readVarint()
}

function readTrainer(field: number, out: Model, pbf: PbfReader): void {
  if (field === 3) out.type = pbf.readVarint()
  else if (field === 35) out.byteFallback = pbf.readBoolean()
  else if (field === 40) out.special.unk = pbf.readVarint(true)
  else if (field === 41) out.special.bos = pbf.readVarint(true)
  else if (field === 42) out.special.eos = pbf.readVarint(true)
  else if (field === 43) out.special.pad = pbf.readVarint(true)
}

function readNormalizer(field: number, out: Model, pbf: PbfReader): void {
  if (field === 2) out.charsmap = pbf.readBytes()
  else if (field === 3) out.addDummyPrefix = pbf.readBoolean()
  else if (field === 4) out.removeExtraWhitespaces = pbf.readBoolean()
}

function fail(what: string): never {
  throw new DeemError('ERR_FORMAT', `[tokenizer] cannot use this SentencePiece model: ${what}`)
}
