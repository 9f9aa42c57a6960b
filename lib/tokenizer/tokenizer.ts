import { mkdir, readFile, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { isJsonObject } from '../json.js'
import { type Engine, guarded, makeEngine } from './engine.js'
import { addedToken, type TokenizerConfig, type TokenizerJson } from './json.js'

/** The tokens DEEM adds after the vocabulary of the language model, in id order. */
export const addedTokens = ['<|startofimage|>', '<|sniffer|>', '<ref>', '</ref>', '<box>', '</box>'] as const

/** Ids with a meaning for the model. */
export interface SpecialIds {
  bos: number
  eos: number
  pad: number
  /** Start of an image; `imageTokens` times `image` follow. */
  soi: number
  /** A slot that an image token replaces. */
  image: number
}

export interface TokenizerOptions {
  /** Where the added tokens start if the file lacks them; the language model's vocabulary size where that is padded. */
  baseVocabSize?: number
  /** For files that name no padding token. */
  padId?: number
}

/** Loads with the first such file: most programs read none. */
const sentencePiece = async (bytes: Uint8Array) => (await import('./sentencepiece.js')).fromSentencePiece(bytes)

/**
 * Text to ids and back, with DEEM's added tokens.
 *
 * @example
 * ```ts
 * import { Tokenizer } from 'deem'
 *
 * const tokenizer = await Tokenizer.load('vicuna-7b') // tokenizer.json, or tokenizer.model alone
 * const ids = tokenizer.encode('a cat', { bos: true })
 * console.log(tokenizer.decode(ids), tokenizer.ids.soi)
 * ```
 */
export class Tokenizer {
  readonly ids: SpecialIds
  /** Every id is below it. */
  readonly vocabSize: number
  /** Ids from here on were added by DEEM. */
  readonly baseVocabSize: number
  /** What {@link save} writes: the file as read plus the added tokens. */
  readonly json: TokenizerJson
  readonly config: TokenizerConfig
  readonly #engine: Engine
  #plain: Engine | undefined

  constructor(json: TokenizerJson, config: TokenizerConfig = {}, options: TokenizerOptions = {}) {
    const { json: full, base } = withAddedTokens(json, options.baseVocabSize)
    this.json = full
    this.config = config
    this.#engine = makeEngine(full, config)
    this.baseVocabSize = base
    this.vocabSize = Math.max(...Object.values(vocabularyOf(full))) + 1
    const named = (role: string, ...usual: string[]): number | undefined => {
      for (const token of [tokenName(config[role]), ...usual]) {
        const id = token === undefined ? undefined : this.#engine.token_to_id(token)
        if (id !== undefined) return id
      }
      return undefined
    }
    const needed = (role: string, id: number | undefined): number => {
      if (id === undefined) throw new DeemError('ERR_FORMAT', `[tokenizer] needs a ${role} but the files name none`)
      return id
    }
    this.ids = {
      bos: needed('bos_token', named('bos_token', '<s>', '<|begin_of_text|>')),
      eos: needed('eos_token', named('eos_token', '</s>', '<|end_of_text|>')),
      pad: needed('pad_token (or option padId)', options.padId ?? named('pad_token', '<pad>', '[PAD]', '<unk>')),
      soi: needed(addedTokens[0], this.#engine.token_to_id(addedTokens[0])),
      image: needed(addedTokens[1], this.#engine.token_to_id(addedTokens[1])),
    }
  }

  /**
   * Reads a folder with tokenizer.json or, where that is missing, a SentencePiece tokenizer.model (and tokenizer_config.json
   * and chat_template.jinja if there are), or one of the two files itself.
   */
  static async load(path: string, options: TokenizerOptions = {}): Promise<Tokenizer> {
    const folder = (await stat(path).catch(() => undefined))?.isDirectory() === true
    const files = folder ? [join(path, 'tokenizer.json'), join(path, 'tokenizer.model')] : [path]
    for (const file of files) {
      const bytes = await readBytes(file)
      if (!bytes) continue
      const own = file.endsWith('.model') ? await sentencePiece(bytes) : { json: parsed(bytes, file), config: {} }
      const beside = join(dirname(file), 'tokenizer_config.json')
      const text = await readBytes(beside)
      const template = await readBytes(join(dirname(file), 'chat_template.jinja'))
      const config = {
        ...own.config,
        ...(text && (parsed(text, beside) as TokenizerConfig)),
        ...(template && { chat_template: template.toString('utf8') }),
      }
      return new Tokenizer(own.json as TokenizerJson, config, options)
    }
    throw new DeemError('ERR_IO', `[tokenizer] no tokenizer at ${files.join(' or ')}`)
  }

  /** The Jinja template of conversations, of several the one named default; undefined where the files have none. */
  get chatTemplate(): string | undefined {
    const { chat_template: own } = this.config
    const list: unknown[] = Array.isArray(own) ? own : []
    const named = list.find((one) => isJsonObject(one) && one['name'] === 'default')
    const template = isJsonObject(named) ? named['template'] : own
    return typeof template === 'string' ? template : undefined
  }

  /** Writes tokenizer.json and tokenizer_config.json. */
  async save(folder: string): Promise<void> {
    await mkdir(folder, { recursive: true })
    const { bos, eos, pad } = this.ids
    const names = { bos_token: this.token(bos), eos_token: this.token(eos), pad_token: this.token(pad) }
    await writeFile(join(folder, 'tokenizer.json'), `${JSON.stringify(this.json)}\n`)
    await writeFile(join(folder, 'tokenizer_config.json'), `${JSON.stringify({ ...this.config, ...names }, null, 2)}\n`)
  }

  /**
   * @param options.bos put the bos id in front
   * @param options.eos put the eos id at the end
   * @param options.special whether `<ref>`, `</s>` and the like in the text become their ids (default) or stay text
   */
  encode(text: string, options: { bos?: boolean; eos?: boolean; special?: boolean } = {}): number[] {
    let engine = this.#engine
    if (options.special === false) {
      this.#plain ??= makeEngine({ ...this.json, added_tokens: [] }, this.config)
      engine = this.#plain
    }
    const ids = text === '' ? [] : guarded(() => engine.encode(text, { add_special_tokens: false }).ids)
    const bad = ids.indexOf(undefined)
    if (bad >= 0)
      throw new DeemError(
        'ERR_VALUE',
        `[tokenizer] no id for part ${bad} of ${JSON.stringify(text)} and no unknown token`,
      )
    return [...(options.bos ? [this.ids.bos] : []), ...(ids as number[]), ...(options.eos ? [this.ids.eos] : [])]
  }

  /** @param options.special whether bos, image slots and the like appear in the text; left out by default */
  decode(ids: ArrayLike<number | bigint>, options: { special?: boolean } = {}): string {
    const list = Array.from(ids, Number)
    if (list.length === 0) return ''
    for (const id of list) {
      if (!(Number.isInteger(id) && id >= 0 && id < this.vocabSize)) {
        throw new DeemError('ERR_INDEX', `[tokenizer] ids must lie in 0..${this.vocabSize - 1} but got ${id}`)
      }
    }
    return guarded(() =>
      this.#engine.decode(list, {
        skip_special_tokens: options.special !== true,
        clean_up_tokenization_spaces: false,
      }),
    )
  }

  /** The id of one token, undefined where there is none. */
  id(token: string): number | undefined {
    return this.#engine.token_to_id(token)
  }

  /** The token of one id, undefined where there is none. */
  token(id: number): string | undefined {
    return this.#engine.id_to_token(id)
  }
}

function vocabularyOf(json: TokenizerJson): Record<string, number> {
  const { vocab } = json.model
  // A list of pairs (token, score) is the form of Unigram models: the id is the place in the list.
  const own = Array.isArray(vocab) ? Object.fromEntries(vocab.map(([token], i) => [token, i])) : { ...vocab }
  for (const token of json.added_tokens) own[token.content] = token.id
  return own
}

function withAddedTokens(json: TokenizerJson, from?: number): { json: TokenizerJson; base: number } {
  if (typeof json !== 'object' || json === null || typeof json.model !== 'object' || json.model === null) {
    throw new DeemError('ERR_FORMAT', '[tokenizer] tokenizer.json must hold an object with a model')
  }
  // Old files leave the type out where merges or scores tell; the library takes any other word for a list of characters.
  const { type } = json.model
  if (type !== undefined && !['BPE', 'WordPiece', 'Unigram'].includes(type as string)) {
    throw new DeemError('ERR_FORMAT', `[tokenizer] model must be BPE, WordPiece or Unigram but is ${type}`)
  }
  const full = { ...json, added_tokens: [...(json.added_tokens ?? [])] }
  const vocab = vocabularyOf(full)
  const present = addedTokens.map((token) => vocab[token]).filter((id) => id !== undefined)
  const taken = Math.max(-1, ...Object.values(vocab)) + 1
  if (taken === 0) throw new DeemError('ERR_FORMAT', '[tokenizer] the vocabulary is empty')
  if (present.length > 0 && present.length < addedTokens.length) {
    const missing = addedTokens.filter((token) => vocab[token] === undefined)
    throw new DeemError('ERR_FORMAT', `[tokenizer] needs all added tokens or none but lacks ${missing.join(' ')}`)
  }
  if (present.length > 0) return { json: full, base: Math.min(...present) }
  const base = from ?? taken
  if (base < taken)
    throw new DeemError('ERR_VALUE', `[tokenizer] baseVocabSize must be at least ${taken} but got ${base}`)
  addedTokens.forEach((content, i) => {
    full.added_tokens.push(addedToken(content, base + i))
  })
  return { json: full, base }
}

function tokenName(entry: unknown): string | undefined {
  if (typeof entry === 'string') return entry
  if (typeof entry === 'object' && entry !== null && 'content' in entry && typeof entry.content === 'string')
    return entry.content
  return undefined
}

async function readBytes(file: string): Promise<Buffer | undefined> {
  try {
    return await readFile(file)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw causedBy(cause, 'ERR_IO', `[tokenizer] cannot read ${file}`)
  }
}

function parsed(bytes: Buffer, file: string): object {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch (cause) {
    throw causedBy(cause, 'ERR_FORMAT', `[tokenizer] ${file} is not JSON`)
  }
}
