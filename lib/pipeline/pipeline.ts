import { DeemError } from '../errors.js'
import { checkLimits, type DecodeOptions, decode } from '../generate/decode.js'
import type { PaintOptions } from '../generate/picture-session.js'
import { TextSession } from '../generate/text-session.js'
import { decodeImage, type ImageSource, type Picture, square } from '../image/index.js'
import type { Deem } from '../models/deem.js'
import { image, text } from '../sequence.js'
import type { CallOptions } from '../task.js'
import { tensor } from '../tensor.js'
import type { Tokenizer } from '../tokenizer/index.js'
import {
  disposeInputs,
  type Geometry,
  geometryOf,
  type PictureFit,
  type Prompt,
  partsOf,
  picturesOf,
  pictureTensor,
  promptInputs,
} from './prompt.js'
import { TextStream } from './text-stream.js'

export interface TextOptions extends Omit<DecodeOptions, 'maxNewTokens' | 'allowed' | 'logitBias'>, PictureFit {
  /** Default 64. */
  maxTokens?: number
  /** Strings that end the text; they are not part of it. */
  stop?: readonly string[]
  /** The text is one of these. */
  choices?: readonly string[]
  /** Added to the scores of tokens, by id or by the token itself. */
  logitBias?: Readonly<Record<string, number>> | ReadonlyMap<number, number>
}

/** stop: an end token or a stop string; image: the model wants to show a picture; length: the limit. */
export type FinishReason = 'stop' | 'image' | 'length'

export interface TextResult {
  text: string
  ids: number[]
  /** Log-probability of each id. */
  logProbs: number[]
  /** The likeliest tokens at each place, where `alternatives` asked for them. */
  alternatives: { token: string; logProb: number }[][]
  finishReason: FinishReason
}

export interface TextDelta {
  type: 'text'
  /** Text that is new and final. */
  text: string
}
export interface PicturePiece {
  type: 'image'
  image: Picture
}

export interface GenerateOptions extends TextOptions {
  /** Pictures painted at most. Default 1. */
  maxImages?: number
  /** `image` begins with a picture, `text` paints none, `auto` (default) as the model wants. */
  mode?: 'auto' | 'text' | 'image'
  /** How pictures are painted. */
  painting?: PaintOptions
}

/** A model with its tokenizer: prompts of words and pictures in, text and pictures out. */
export class Pipeline implements Disposable {
  readonly model: Deem
  readonly tokenizer: Tokenizer
  readonly geometry: Geometry

  constructor({ model, tokenizer, config }: { model: Deem; tokenizer: Tokenizer; config: object }) {
    this.model = model
    this.tokenizer = tokenizer
    this.geometry = geometryOf(config)
  }

  /** Text that goes on from a prompt. */
  async generateText(prompt: Prompt, options: TextOptions = {}): Promise<TextResult> {
    const [only] = await this.generateTexts([prompt], options)
    return only as TextResult
  }

  /** The same for several prompts in one batch; every one gets what it would get alone. */
  async generateTexts(prompts: readonly Prompt[], options: TextOptions = {}): Promise<TextResult[]> {
    const writers = prompts.map(() => new Writer(this.tokenizer, options))
    const inputs = await promptInputs(prompts, this.tokenizer, this.geometry, options)
    try {
      using session = await TextSession.open(this.model, inputs, {
        reserve: options.maxTokens ?? 64,
        signal: options.signal,
      })
      for await (const step of decode(session, this.#ends(), this.#decoding(options, writers))) {
        for (const [r, writer] of writers.entries()) writer.take(step, r)
        if (writers.every((w) => w.done)) break
      }
    } finally {
      disposeInputs(inputs)
    }
    return writers.map((w) => w.result(this.tokenizer))
  }

  /** The same as it comes: pieces of text, each new and final. */
  async *streamText(prompt: Prompt, options: TextOptions = {}): AsyncGenerator<TextDelta, TextResult, undefined> {
    const writer = new Writer(this.tokenizer, options)
    const inputs = await promptInputs([prompt], this.tokenizer, this.geometry, options)
    try {
      using session = await TextSession.open(this.model, inputs, { signal: options.signal })
      yield* this.#stream(session, writer, options)
    } finally {
      disposeInputs(inputs)
    }
    return writer.result(this.tokenizer)
  }

  /** A picture painted from what stands before it. */
  async generateImage(prompt: Prompt, options: PaintOptions & PictureFit = {}): Promise<Picture> {
    const blank: Picture = { dtype: 'f32', shape: [1, 1, 3], data: new Float32Array(3) }
    const inputs = await promptInputs([[...partsOf(prompt), image(blank)]], this.tokenizer, this.geometry, options)
    const last = (inputs.image_tensors?.shape[0] ?? 1) - 1
    const which = tensor([last], [1], 'i64')
    try {
      return (await picturesOf(await this.model.paint({ ...inputs, which }, options)))[0] as Picture
    } finally {
      disposeInputs({ ...inputs, which })
    }
  }

  /**
   * Text and pictures as the model alternates them: it writes until it wants to show a picture, the picture is painted and read, and
   * it goes on. Ends with the text, or when `maxImages` are painted and it wants another.
   */
  async *generate(
    prompt: Prompt,
    options: GenerateOptions = {},
  ): AsyncGenerator<TextDelta | PicturePiece, void, undefined> {
    const { maxImages = 1, mode = 'auto', painting = {}, maxTokens = 64 } = options
    checkLimits(maxTokens, 0)
    const { soi } = this.tokenizer.ids
    let document = [...partsOf(prompt)]
    let left = maxTokens
    let wanted = mode === 'image'
    for (let images = 0; ; ) {
      if (wanted && images < maxImages) {
        const seed = typeof painting.seed === 'number' ? painting.seed + images : (painting.seed ?? images)
        const picture = await this.generateImage(document, { ...options, ...painting, seed, signal: options.signal })
        yield { type: 'image', image: picture }
        document = [...document, image(picture)]
        images++
      } else if (wanted) return
      if (left <= 0) return
      const writer = new Writer(this.tokenizer, options)
      const inputs = await promptInputs([document], this.tokenizer, this.geometry, options)
      try {
        using session = await TextSession.open(this.model, inputs, { signal: options.signal })
        yield* this.#stream(session, writer, { ...options, maxTokens: left, banned: mode === 'text' ? [soi] : [] })
      } finally {
        disposeInputs(inputs)
      }
      const { ids, finishReason } = writer.result(this.tokenizer)
      if (finishReason !== 'image') return
      left -= ids.length
      document = [...document, text(ids.slice(0, -1))]
      wanted = true
    }
  }

  /** Log-probabilities of texts that could follow a prompt, each the sum over its tokens. */
  async score(
    prompt: Prompt,
    continuations: readonly string[],
    options: PictureFit & CallOptions = {},
  ): Promise<number[]> {
    const inputs = await promptInputs([prompt], this.tokenizer, this.geometry, options)
    try {
      return await this.model.score(
        inputs,
        continuations.map((s) => this.tokenizer.encode(s)),
        options,
      )
    } finally {
      disposeInputs(inputs)
    }
  }

  /** What the language model is told of a picture: its image tokens, [Q, C], row by row. */
  async embed(source: ImageSource, options: PictureFit & CallOptions = {}): Promise<Float32Array[]> {
    const image_tensors = pictureTensor([await this.#encoderView(source, options)])
    try {
      const { query_embeds: tokens } = await this.model.callForData(
        'see',
        { image_tensors },
        {},
        { signal: options.signal },
      )
      const [, count = 0, width = 0] = tokens?.shape ?? []
      const all = tokens?.data as Float32Array
      return Array.from({ length: count }, (_, i) => all.slice(i * width, (i + 1) * width))
    } finally {
      image_tensors.dispose()
    }
  }

  /** What the encoder saw of a picture, painted by the denoiser. */
  async reconstruct(source: ImageSource, options: PaintOptions & PictureFit = {}): Promise<Picture> {
    const image_tensors = pictureTensor([await this.#encoderView(source, options)])
    try {
      return (await picturesOf(await this.model.reconstruct({ image_tensors }, options)))[0] as Picture
    } finally {
      image_tensors.dispose()
    }
  }

  dispose(): void {
    this.model.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  async #encoderView(source: ImageSource, fit: PictureFit): Promise<Picture> {
    return square(await decodeImage(source, fit), this.geometry.encoderSide, fit)
  }

  #ends() {
    const { eos, soi, pad } = this.tokenizer.ids
    return { stops: [eos, soi], pad }
  }

  #decoding(options: TextOptions, writers: readonly Writer[]): DecodeOptions {
    const { maxTokens = 64, stop: _stop, choices, logitBias: _bias, ...rest } = options
    const bias = writers[0]?.bias
    return {
      ...rest,
      maxNewTokens: maxTokens,
      ...(bias && { logitBias: bias }),
      ...(choices && { allowed: (r: number, ids: readonly number[]) => writers[r]?.choicesAfter(ids) }),
    }
  }

  async *#stream(session: TextSession, writer: Writer, options: TextOptions): AsyncGenerator<TextDelta> {
    for await (const step of decode(session, this.#ends(), this.#decoding(options, [writer]))) {
      const more = writer.take(step, 0)
      if (more !== '') yield { type: 'text', text: more }
      if (writer.done) break
    }
    const rest = writer.end()
    if (rest !== '') yield { type: 'text', text: rest }
  }
}

/** One text as it is written. */
class Writer {
  readonly bias: ReadonlyMap<number, number> | undefined
  readonly #tokenizer: Tokenizer
  readonly #stream: TextStream
  readonly #choices: readonly (readonly number[])[]
  readonly #ids: number[] = []
  readonly #logProbs: number[] = []
  readonly #alternatives: { id: number; logProb: number }[][] = []
  #reason: FinishReason = 'length'
  #ended = false

  constructor(tokenizer: Tokenizer, options: TextOptions) {
    this.#tokenizer = tokenizer
    this.#stream = new TextStream(tokenizer, options.stop)
    this.bias = biasById(tokenizer, options.logitBias)
    this.#choices = (options.choices ?? []).map((c) => [...tokenizer.encode(c), tokenizer.ids.eos])
    if (options.choices?.length === 0) throw new DeemError('ERR_VALUE', 'there is nothing to choose from')
  }

  get done(): boolean {
    return this.#ended
  }

  /** What may follow ids so that the text stays one of the choices. */
  choicesAfter(ids: readonly number[]): number[] {
    return [
      ...new Set(this.#choices.filter((c) => ids.every((id, i) => c[i] === id)).map((c) => c[ids.length] as number)),
    ]
  }

  /** Takes the token of row `r`; gives the text that is now certain. */
  take(
    step: { ids: number[]; logProbs: number[]; alternatives: { id: number; logProb: number }[][] },
    r: number,
  ): string {
    if (this.#ended) return ''
    const id = step.ids[r] as number
    this.#ids.push(id)
    this.#logProbs.push(step.logProbs[r] as number)
    const others = step.alternatives[r] ?? []
    if (others.length > 0) this.#alternatives.push(others)
    const { eos, soi } = this.#tokenizer.ids
    if (id === eos || id === soi) {
      this.#ended = true
      this.#reason = id === eos ? 'stop' : 'image'
      return this.#stream.end()
    }
    const more = this.#stream.push(id)
    if (this.#stream.stopped) {
      this.#ended = true
      this.#reason = 'stop'
    }
    return more
  }

  /** No more tokens come: what was held back. */
  end(): string {
    return this.#ended ? '' : this.#stream.end()
  }

  result(tokenizer: Tokenizer): TextResult {
    this.end()
    return {
      text: this.#stream.text,
      ids: this.#ids,
      logProbs: this.#logProbs,
      alternatives: this.#alternatives.map((list) =>
        list.map(({ id, logProb }) => ({ token: tokenizer.token(id) ?? '', logProb })),
      ),
      finishReason: this.#reason,
    }
  }
}

function biasById(tokenizer: Tokenizer, bias: TextOptions['logitBias']): ReadonlyMap<number, number> | undefined {
  if (bias === undefined || bias instanceof Map) return bias as ReadonlyMap<number, number> | undefined
  return new Map(
    Object.entries(bias).map(([token, value]) => {
      const id = tokenizer.id(token)
      if (id === undefined) throw new DeemError('ERR_VALUE', `logitBias names '${token}', which is no token`)
      return [id, value]
    }),
  )
}
