import { type CreateOptions, createHandle, type ForwardOptions, Module, output } from '../module.js'
import type { NativeModel } from '../native.js'
import type { Tensor } from '../tensor.js'
import type { AdamW } from '../train/adamw.js'
import { type TrainStepOptions, trainStep } from '../train/step.js'
import type { SamplerName } from './sampler.js'

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

export interface GenerateTextOptions extends ForwardOptions {
  /** Default 32. */
  maxNewTokens?: number
  /** Rows end no earlier; bos counts. Default 0. */
  minLength?: number
}

export interface SampleOptions extends ForwardOptions {
  /** Default ddim. */
  sampler?: SamplerName
  /** Steps of the sampler. Default 20. */
  steps?: number
  /** Noise levels spaced as Karras et al. do; dpmpp and the Eulers. Default false. */
  karras?: boolean
  /** Noise of DDIM, 0 (default) to 1. */
  eta?: number
  /** Weight of classifier-free guidance. Default 3.5. */
  guidance?: number
}

/** DEEM whole: encoder, resampler, language model, image decoder and the denoiser that is its eyes. */
export class Deem extends Module {
  /** What it was built with. */
  readonly config: Readonly<Record<string, unknown>>

  /** @internal */
  constructor(handle: NativeModel, config: object) {
    super('deem', handle)
    this.config = JSON.parse(JSON.stringify(config)) as Record<string, unknown>
  }

  /** Builds a model with fresh parameters. Throws ERR_CONFIG naming unknown, missing or misfit keys. */
  static async build(config: object, options: CreateOptions = {}): Promise<Deem> {
    return new Deem(await createHandle('deem', config, options), config)
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

  /** Greedy text after left-padded prompts: i64 [B, n], bos, then what was generated up to eos or start of image, then pad. */
  async generateText(
    inputs: DeemInputs,
    { maxNewTokens = 32, minLength = 0, ...call }: GenerateTextOptions = {},
  ): Promise<Tensor> {
    const options = { max_new_tokens: maxNewTokens, min_length: minLength }
    return output(await this.call('generate_text', inputs, options, { ...call, grad: false }), 'ids')
  }

  /**
   * Paints images `which` (i64 [k], in reading order) from what stands before them; pixels given for them are not looked at.
   * `latent` [k, h, w, C] is the noise to start from, else it is drawn from `seed`. Gives f32 [k, H, W, 3] in 0..1.
   */
  paint(inputs: DeemInputs & { which: Tensor; latent?: Tensor }, options: SampleOptions = {}): Promise<Tensor> {
    return this.#sample('paint', inputs, options)
  }

  /** What the encoder saw of pictures [N, H, W, 3], painted through the path of the consistency loss. Same shape as `paint`. */
  reconstruct(
    inputs: { image_tensors: Tensor; image_tensors_mask?: Tensor; latent?: Tensor },
    options: SampleOptions = {},
  ): Promise<Tensor> {
    return this.#sample('reconstruct', inputs, options)
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

  async #sample(
    method: string,
    inputs: Record<string, Tensor | undefined>,
    { sampler = 'ddim', steps = 20, karras = false, eta = 0, guidance = 3.5, ...call }: SampleOptions,
  ): Promise<Tensor> {
    const options = { sampler, steps, karras, eta, guidance }
    const { latent, image } = await this.call(method, inputs, options, { ...call, grad: false })
    latent?.dispose()
    return output(image ? { image } : {}, 'image')
  }
}
