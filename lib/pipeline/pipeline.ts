import { checkLimits, decode } from '../generate/decode.js'
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
import { decoding, type TextOptions, type TextResult, Writer } from './writer.js'

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
      for await (const step of decode(session, this.ends(), decoding(options, ...writers))) {
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

  /** @internal Where texts end. */
  ends(): { stops: number[]; pad: number } {
    const { eos, soi, pad } = this.tokenizer.ids
    return { stops: [eos, soi], pad }
  }

  async *#stream(session: TextSession, writer: Writer, options: TextOptions): AsyncGenerator<TextDelta> {
    for await (const step of decode(session, this.ends(), decoding(options, writer))) {
      const more = writer.take(step, 0)
      if (more !== '') yield { type: 'text', text: more }
      if (writer.done) break
    }
    const rest = writer.end()
    if (rest !== '') yield { type: 'text', text: rest }
  }
}
