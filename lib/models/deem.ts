import { DeemError } from '../errors.js'
import { type BeamOptions, beamSearch } from '../generate/beam.js'
import { checkLimits, type DecodeOptions, decode } from '../generate/decode.js'
import { type PaintOptions, PictureSession, type PictureStart, paintAll } from '../generate/picture-session.js'
import { TextSession } from '../generate/text-session.js'
import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { NativeModel } from '../native.js'
import type { CallOptions } from '../task.js'
import type { Tensor } from '../tensor.js'
import type { AdamW } from '../train/adamw.js'
import { type TrainStepOptions, trainStep } from '../train/step.js'

/** Rows of text and images as the model takes them; `buildSequences` makes them. B rows of L ids, N images in reading order. */
export interface DeemInputs extends Record<string, Tensor | undefined> {
  /** i64 [B, L] */
  text_ids: Tensor
  /** i64 [B, L], 0 on padding. */
  attention_mask: Tensor
  /** i64 [B], images in each row. */
  num_image_per_seq: Tensor
  /** i64 [N], for each image the column where its document begins; absent: found by the bos tokens. */
  nearest_bos_idxs?: Tensor
  /** f32 [N, H, W, 3] in 0..1, for the encoder. */
  image_tensors?: Tensor
  /** f32 [N, H, W, 1], where the encoder may look: above 0. Absent: everywhere. */
  image_tensors_mask?: Tensor
}

/** Draws that are made from (seed, step) where they are not given. */
export interface DeemDraws {
  /** i64 [N], timesteps of the consistency loss and of the image loss. */
  sniffer_t?: Tensor
  img_t?: Tensor
  /** f32 [N, h, w, C], noise on the latents, and the VAE's own draws. */
  sniffer_noise?: Tensor
  img_noise?: Tensor
  sniffer_eps?: Tensor
  img_eps?: Tensor
  /** f32 [N] in 0..1; below `uncond_prob` an image is painted without its context. */
  uncond_rand?: Tensor
}

export interface DeemTrainInputs extends DeemInputs, DeemDraws {
  /** f32 [N, H, W, 3] in 0..1, for the denoiser. */
  image_tensors_dec?: Tensor
  /** i64 [B, L - 1], next-token targets with -100 where there is no loss; absent: made from the ids. */
  labels?: Tensor
  /** i64 [B], ids at the start of each row that carry no loss. */
  prompt_offset?: Tensor
  /** f32 [N], 0 for images without image loss. */
  image_loss_mask?: Tensor
}

/** Options of one training pass. */
export interface DeemTrainOptions {
  /** Whether the consistency loss takes part. Default true. */
  feedback?: boolean
  /** Whether the image loss takes part. Default true. */
  image_loss?: boolean
  /** Text before a document's first image carries no loss. Default false. */
  noimage_cond?: boolean
  /** Dropout and stochastic depth are on. Default false. */
  training?: boolean
  /** In place of the configured loss weights. */
  weight_txt?: number
  weight_img?: number
  weight_sniffer?: number
  /** Normalises pictures of the image loss twice, as the published code does. Default by `compat`. */
  second_normalization?: boolean
  /** Returns intermediate results as well. Default false. */
  details?: boolean
}

export interface GenerateTextOptions extends DecodeOptions, Omit<BeamOptions, 'numBeams'> {
  /** Above 1: beam search, which takes no temperature. Default 1. */
  numBeams?: number
}

/** Rows of ids in the order of the prompts, as published: bos, then what was generated, up to eos or start of image, then pad. */
export interface GeneratedText {
  ids: number[][]
  /** Log-probability of each generated id; of beam search none. */
  logProbs: number[][]
  /** Of beam search: total log-probability over length ** lengthPenalty. */
  scores: number[]
}

/** Ids with a meaning for a model. */
interface TokenIds {
  bos: number
  eos: number
  pad: number
  soi: number
}

/** DEEM whole: encoder, resampler, language model, image decoder and the denoiser that is its eyes. */
export class Deem extends Module {
  /** What it was built with. */
  readonly config: Readonly<Record<string, unknown>>
  readonly #tokens: TokenIds

  /** @internal */
  constructor(handle: NativeModel, config: object) {
    super('deem', handle)
    this.config = JSON.parse(JSON.stringify(config)) as Record<string, unknown>
    const ids = this.config['special_token_dict'] as Record<string, number>
    const id = (name: string) => ids[`${name}_token_id`] as number
    this.#tokens = { bos: id('bos'), eos: id('eos'), pad: id('pad'), soi: id('soi') }
  }

  /** Builds a model with fresh parameters. Throws ERR_CONFIG naming unknown, missing or misfit keys. */
  static async build(config: object, options: CreateOptions = {}): Promise<Deem> {
    return new Deem(await createHandle('deem', config, options), config)
  }

  /** @internal Built for weights that come from files, see `createHandle`. */
  static async uninitialized(config: object, options: CreateOptions): Promise<Deem> {
    return new Deem(await createHandle('deem', config, options, false), config)
  }

  /** The losses `loss`, `loss_txt`, `loss_img`, `loss_sniffer` as scalars, with a graph unless `grad` is false. */
  forward(
    inputs: DeemTrainInputs,
    options: DeemTrainOptions = {},
    forward?: ForwardOptions,
  ): Promise<Record<string, Tensor>> {
    return this.call('train', inputs, options, forward)
  }

  /** Forward, backward, clipping and the optimizer's step as one task; see `trainStep`. */
  trainStep(
    inputs: DeemTrainInputs,
    optimizer: AdamW | null,
    options: Omit<TrainStepOptions, 'method' | 'options'> & { options?: DeemTrainOptions } = {},
  ): Promise<Record<string, number>> {
    return trainStep(this, inputs, optimizer, options)
  }

  /**
   * Text after left-padded prompts: greedy, drawn with a `temperature`, or the best of `numBeams` beams. `numReturnSequences` rows
   * a prompt come one after another, best first; when drawing, each has its own seed.
   */
  async generateText(inputs: DeemInputs, options: GenerateTextOptions = {}): Promise<GeneratedText> {
    const { numBeams = 1, numReturnSequences = 1, maxNewTokens = 32, minLength = 0, signal } = options
    checkLimits(maxNewTokens, minLength)
    const { bos, eos, soi, pad } = this.#tokens
    const stops = [eos, soi]
    const copies = numBeams > 1 ? numBeams : numReturnSequences
    using session = await TextSession.open(this, inputs, { copies, reserve: maxNewTokens, signal })
    if (numBeams > 1) {
      const rows = await beamSearch(session, { bos, stops }, { ...options, numBeams })
      const width = Math.max(...rows.map(({ ids }) => ids.length))
      const padded = rows.map(({ ids }) => [...ids, ...Array<number>(width - ids.length).fill(pad)])
      return { ids: padded, logProbs: [], scores: rows.map(({ score }) => score) }
    }
    const written = Array.from({ length: session.rows }, () => ({ ids: [bos], logProbs: [] as number[] }))
    for await (const { ids, logProbs, alive } of decode(session, { stops, pad }, options))
      for (const [r, row] of written.entries()) {
        row.ids.push(ids[r] as number)
        if (alive[r]) row.logProbs.push(logProbs[r] as number)
      }
    return { ids: written.map(({ ids }) => ids), logProbs: written.map(({ logProbs }) => logProbs), scores: [] }
  }

  /**
   * How likely continuations of one prompt are: the sum of the log-probabilities of their ids, each of any length. Throws ERR_SHAPE
   * for more than one prompt.
   */
  async score(
    inputs: DeemInputs,
    continuations: readonly (readonly number[])[],
    options?: CallOptions,
  ): Promise<number[]> {
    if (inputs.text_ids.shape[0] !== 1)
      throw new DeemError('ERR_SHAPE', `score takes one prompt but got ${inputs.text_ids.shape[0]}`)
    using session = await TextSession.open(this, inputs, { copies: continuations.length, ...options })
    const rows = await session.score(continuations, options)
    return rows.map((row) => row.reduce((sum, v) => sum + v, 0))
  }

  /**
   * Paints images `which` (i64 [k], in reading order) from what stands before them; pixels given for them are not looked at. Gives f32
   * [k, H, W, 3] in 0..1. With a `picture` it starts from it, or keeps what lies outside of `repaint`.
   */
  async paint(inputs: DeemInputs & PictureStart & { which: Tensor }, options: PaintOptions = {}): Promise<Tensor> {
    using session = await PictureSession.open(this, 'picture', { ...inputs }, options, { signal: options.signal })
    return await paintAll(session, options)
  }

  /** What the encoder saw of pictures [N, H, W, 3], painted through the path of the consistency loss. Same shape as `paint`. */
  async reconstruct(
    inputs: PictureStart & { image_tensors: Tensor; image_tensors_mask?: Tensor },
    options: PaintOptions = {},
  ): Promise<Tensor> {
    using session = await PictureSession.open(this, 'reconstruction', { ...inputs }, options, {
      signal: options.signal,
    })
    return await paintAll(session, options)
  }

  /** Image tokens after the resampler, `query_embeds` [N, Q, C], and the encoder's own, `sniffer_tokens` [N, 1 + h * w, D]. */
  see(
    inputs: { image_tensors: Tensor; image_tensors_mask?: Tensor },
    options: ForwardOptions = {},
  ): Promise<Record<string, Tensor>> {
    return this.call('see', inputs, {}, options)
  }

  /** What the denoiser would be told about each image of the rows, from what stands before it: f32 [N, Q, C]. */
  async conditions(inputs: DeemInputs, options?: ForwardOptions): Promise<Tensor> {
    return output(await this.call('conditions', inputs, {}, options), 'cond')
  }
}
