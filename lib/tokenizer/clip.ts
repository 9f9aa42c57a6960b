/** CLIP's tokenizer from vocab.json and merges.txt, as Stable Diffusion folders hold it: the tokenizer.json they stand for. */
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { isJsonObject, type JsonObject, readJson } from '../json.js'
import { type Engine, makeEngine } from './engine.js'
import { addedToken, type TokenizerJson } from './json.js'

/** CLIP's words: contractions, runs of letters, single digits, runs of anything else. */
const words = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"

export class ClipTokenizer {
  /** Ids in a prompt: longer ones are cut, shorter ones padded. */
  readonly length: number
  readonly #engine: Engine
  readonly #pad: number
  readonly #end: number

  private constructor(engine: Engine, ids: { pad: number; end: number }, length: number) {
    this.#engine = engine
    this.#pad = ids.pad
    this.#end = ids.end
    this.length = length
  }

  /**
   * Reads a folder with vocab.json and merges.txt or, where those are missing, tokenizer.json; tokenizer_config.json names the special
   * tokens. `most` is how many ids the encoder takes. Throws ERR_IO or ERR_FORMAT naming the file.
   */
  static async load(folder: string, most: number): Promise<ClipTokenizer> {
    const settings = join(folder, 'tokenizer_config.json')
    const config = await readJson(settings)
    const whole = join(folder, 'tokenizer.json')
    const json =
      existsSync(whole) && !existsSync(join(folder, 'vocab.json'))
        ? asTokenizer(await readJson(whole), whole)
        : undefined
    const vocab = json ? vocabularyOf(json) : await readVocabulary(join(folder, 'vocab.json'))
    const special = (role: string, usual: string): [string, number] => {
      const token = contentOf(config[role]) ?? usual
      const id = vocab[token]
      if (id === undefined)
        throw new DeemError('ERR_FORMAT', `'${settings}': ${role} '${token}' is not in the vocabulary`)
      return [token, id]
    }
    const [bos, eos] = [special('bos_token', '<|startoftext|>'), special('eos_token', '<|endoftext|>')]
    // Where no padding token is named, CLIP pads with the end token.
    const [pad, unk] = [special('pad_token', eos[0]), special('unk_token', eos[0])]
    const length = config['model_max_length'] ?? most
    if (typeof length !== 'number' || length < 2)
      throw new DeemError('ERR_FORMAT', `'${settings}': model_max_length must be at least 2 but is ${length}`)
    const full = json ?? clipJson(vocab, await readMerges(join(folder, 'merges.txt')), { bos, eos, pad, unk })
    return new ClipTokenizer(makeEngine(full, config), { pad: pad[1], end: eos[1] }, Math.min(length, most))
  }

  /** Ids of a text between the start and the end id, padded to {@link length}. */
  encode(text: string): number[] {
    const ids = this.#engine.encode(text, { add_special_tokens: true }).ids
    if (ids.includes(undefined)) throw new DeemError('ERR_VALUE', '[tokenizer] a part of the prompt has no id')
    const kept = ids as number[]
    if (kept.length > this.length) return [...kept.slice(0, this.length - 1), this.#end]
    return [...kept, ...new Array<number>(this.length - kept.length).fill(this.#pad)]
  }
}

type Token = [content: string, id: number]

/** The tokenizer.json that Hugging Face's converter of CLIP makes. */
function clipJson(
  vocab: Record<string, number>,
  merges: [string, string][],
  { bos, eos, pad, unk }: Record<'bos' | 'eos' | 'pad' | 'unk', Token>,
): TokenizerJson {
  // Stable Diffusion 2 pads with "!", which is then no longer punctuation.
  const added = new Map<string, number>([bos, eos, pad, unk])
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [...added].map((token) => addedToken(...token)),
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'NFC' },
        { type: 'Replace', pattern: { Regex: '\\s+' }, content: ' ' },
        { type: 'Lowercase' },
      ],
    },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: words }, behavior: 'Removed', invert: true },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    },
    post_processor: { type: 'RobertaProcessing', sep: eos, cls: bos, trim_offsets: false, add_prefix_space: false },
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: unk[0],
      continuing_subword_prefix: '',
      end_of_word_suffix: '</w>',
      fuse_unk: false,
      byte_fallback: false,
      vocab,
      merges,
    },
  }
}

function asTokenizer(json: JsonObject, path: string): TokenizerJson {
  const { model, added_tokens: added } = json
  if (!isJsonObject(model) || !isJsonObject(model['vocab']) || !Array.isArray(added))
    throw new DeemError('ERR_FORMAT', `'${path}' lacks a vocabulary or its added tokens`)
  return { ...json, truncation: null, padding: null } as unknown as TokenizerJson
}

function vocabularyOf({ model, added_tokens }: TokenizerJson): Record<string, number> {
  return {
    ...(model.vocab as Record<string, number>),
    ...Object.fromEntries(added_tokens.map((t) => [t.content, t.id])),
  }
}

function contentOf(token: unknown): string | undefined {
  const text = isJsonObject(token) ? token['content'] : token
  return typeof text === 'string' ? text : undefined
}

async function readVocabulary(path: string): Promise<Record<string, number>> {
  const vocab = await readJson(path)
  const bad = Object.entries(vocab).find(([, id]) => !Number.isSafeInteger(id) || (id as number) < 0)
  if (bad) throw new DeemError('ERR_FORMAT', `'${path}': the id of '${bad[0]}' is ${JSON.stringify(bad[1])}`)
  return vocab as Record<string, number>
}

/** Lines of two parts each; the first line may be a comment. */
async function readMerges(path: string): Promise<[string, string][]> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be read`)
  }
  const lines = text.split('\n').map((line) => line.replace(/\r$/, ''))
  if (lines[0]?.startsWith('#version')) lines.shift()
  return lines
    .filter((line) => line !== '')
    .map((line) => {
      const parts = line.split(' ')
      if (parts.length !== 2) throw new DeemError('ERR_FORMAT', `'${path}': a merge must be two parts but is '${line}'`)
      return parts as [string, string]
    })
}
