import { DeemError } from '../errors.js'
import { decode } from '../generate/decode.js'
import type { PaintOptions } from '../generate/picture-session.js'
import { TextSession } from '../generate/text-session.js'
import { decodeImage, type ImageSource, type Picture, type Region, square } from '../image/index.js'
import type { Deem } from '../models/deem.js'
import { image } from '../sequence.js'
import type { CallOptions } from '../task.js'
import { type Tensor, tensor } from '../tensor.js'
import type { Tokenizer } from '../tokenizer/index.js'
import { type GenerateOptions, interleave, type PicturePiece, type TextDelta, write } from './interleave.js'
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
  viewOf,
} from './prompt.js'
import { decoding, type TextOptions, type TextResult, Writer } from './writer.js'

export interface ImageOptions extends PaintOptions, PictureFit {
  /** A picture to start from, as far as `strength` says; it is brought to the painted size. */
  picture?: ImageSource
  /** Of `picture`: only this is painted anew. */
  repaint?: Region
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
    const inputs = await promptInputs([prompt], this.tokenizer, this.geometry, options)
    try {
      using session = await TextSession.open(this.model, inputs, { signal: options.signal })
      return yield* write(session, this, options)
    } finally {
      disposeInputs(inputs)
    }
  }

  /** A picture painted from what stands before it, from noise or from another picture. */
  async generateImage(prompt: Prompt, options: ImageOptions = {}): Promise<Picture> {
    const { picture, repaint, ...painting } = options
    if (repaint && picture === undefined)
      throw new DeemError('ERR_VALUE', 'repaint needs the picture whose rest is kept')
    const blank: Picture = { dtype: 'f32', shape: [1, 1, 3], data: new Float32Array(3) }
    const inputs = await promptInputs([[...partsOf(prompt), image(blank)]], this.tokenizer, this.geometry, options)
    const last = (inputs.image_tensors?.shape[0] ?? 1) - 1
    const start: Record<string, Tensor> = {}
    try {
      start['which'] = tensor([last], [1], 'i64')
      if (picture !== undefined) {
        const { width = this.geometry.painterSide, height = this.geometry.painterSide } = options
        checkSize(width, height)
        const view = await viewOf(repaint ? { source: picture, region: repaint } : picture, width, height, options)
        start['picture'] = pictureTensor([view.picture])
        if (view.mask) start['repaint'] = tensor(view.mask, [1, height, width, 1])
      }
      const painted = await this.model.paint({ ...inputs, ...start } as Parameters<Deem['paint']>[0], painting)
      return (await picturesOf(painted))[0] as Picture
    } finally {
      disposeInputs({ ...inputs, ...start })
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
    const inputs = await promptInputs([prompt], this.tokenizer, this.geometry, options)
    try {
      using session = await TextSession.open(this.model, inputs, { signal: options.signal })
      yield* interleave(session, this, options)
    } finally {
      disposeInputs(inputs)
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

  /**
   * What the encoder saw of a picture, painted by the denoiser. The encoder looks at a square: a picture of another shape comes back
   * whole with `fit: 'stretch'` and a `width` and `height` in its proportions.
   */
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
}

/** What is brought to a size before the model sees the size. */
function checkSize(width: number, height: number): void {
  for (const side of [width, height])
    if (!(Number.isSafeInteger(side) && side >= 1) || width * height > 2 ** 26)
      throw new DeemError('ERR_CONFIG', `pictures must have 1 to 2^26 pixels but this one has ${width} x ${height}`)
}
