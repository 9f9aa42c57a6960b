import type { SamplerName } from '../models/sampler.js'
import { type Tiling, tilingJson } from '../models/vae.js'
import { type Module, output, type SessionHandle } from '../module.js'
import { type CallOptions, throttled } from '../task.js'
import type { Tensor } from '../tensor.js'

export interface PictureOptions {
  /** Default ddim. */
  sampler?: SamplerName
  /** Steps of the sampler. Default 20. */
  steps?: number
  /** Noise levels spaced as Karras et al. do; dpmpp and the Eulers. Default false. */
  karras?: boolean
  /** Noise of DDIM, 0 (default) to 1. */
  eta?: number
  /** Weight of classifier-free guidance (Ho and Salimans 2022). Default 3.5; 1 for none. */
  guidance?: number
  /** How far a given `picture` is left: 1 (default) starts from noise alone, near 0 hardly changes it. */
  strength?: number
  /** Of the noise: one for all pictures, which then get it plus their index, or one a picture. Default 0. */
  seed?: number | readonly number[]
  /**
   * Pixels, multiples of the VAE's factor (8). Default: a square of the size the model was trained at. The denoiser looks at earlier
   * pictures by places in 0..1, so another shape stretches what it sees there.
   */
  width?: number
  height?: number
  /** The VAE works in overlapping tiles, see {@link Tiling}. Default false. */
  tiling?: boolean | Tiling
}

/** Where a picture may start from, beside what it is painted from. K pictures of H x W. */
export interface PictureStart {
  /** f32 [K, h, w, C], unit noise; absent: drawn from the seeds. */
  latent?: Tensor
  /** f32 [K, H, W, 3] in 0..1: the picture that `strength` or `repaint` speak of. */
  picture?: Tensor
  /** f32 [K, H, W, 1]: only what lies where it is above 0 is painted, the rest is that of `picture`. */
  repaint?: Tensor
}

/** Pictures on their way from noise. Holds the model in memory until it is disposed. */
export class PictureSession implements Disposable {
  readonly #session: SessionHandle
  /** What the denoiser is told at each evaluation. */
  readonly timesteps: Float32Array
  #next: number

  private constructor(session: SessionHandle, timesteps: Float32Array, next: number) {
    this.#session = session
    this.timesteps = timesteps
    this.#next = next
  }

  /**
   * `kind`: `picture` paints what stands before `which` images of rows, `reconstruction` what the encoder sees of pictures. Throws
   * ERR_CONFIG for sizes that the VAE cannot divide and for pictures of more than 2^26 pixels.
   */
  static open(
    model: Module,
    kind: 'picture' | 'reconstruction',
    inputs: Record<string, Tensor | undefined> & PictureStart,
    options: PictureOptions = {},
    call?: CallOptions,
  ): Promise<PictureSession> {
    const count = (kind === 'picture' ? inputs['which'] : inputs['image_tensors'])?.shape[0] ?? 0
    return PictureSession.on(model, kind, count, inputs, options, call)
  }

  /** @internal Of `count` pictures, on a model or on a text that is being written. */
  static async on(
    owner: Pick<Module, 'open'>,
    kind: 'picture' | 'reconstruction',
    count: number,
    inputs: Record<string, Tensor | undefined>,
    options: PictureOptions,
    call?: CallOptions,
  ): Promise<PictureSession> {
    const { sampler = 'ddim', steps = 20, karras = false, eta = 0, guidance = 3.5, strength = 1, seed = 0 } = options
    const { width, height, tiling } = options
    const seeds = typeof seed === 'number' ? Array.from({ length: count }, (_, k) => seed + k) : seed
    const json = { sampler, steps, karras, eta, guidance, strength, seeds, width, height, ...tilingJson(tiling) }
    const session = await owner.open(kind, inputs, json, call)
    try {
      const { timesteps, next } = await session.callForData('plan', {}, {}, call)
      return new PictureSession(session, timesteps?.data as Float32Array, Number(next?.data[0]))
    } catch (error) {
      session.dispose()
      throw error
    }
  }

  /** The evaluation that comes next; all are done where it equals their number. */
  get next(): number {
    return this.#next
  }

  /**
   * Runs so many evaluations (default: all that are left) and gives the latent, f32 [K, h, w, C]. `noise` is that of a single one, for
   * samplers that add some; absent, it is drawn.
   */
  async advance(evaluations?: number, noise?: Tensor, call?: CallOptions): Promise<Tensor> {
    const n = evaluations ?? this.timesteps.length - this.#next
    const y = await this.#session.call('advance', { noise }, { evaluations: n }, call)
    this.#next += n
    return output(y, 'latent')
  }

  /** The pictures as they are, f32 [K, H, W, 3] in 0..1. */
  async decode(call?: CallOptions): Promise<Tensor> {
    return output(await this.#session.call('decode', {}, {}, call), 'image')
  }

  /** What the denoiser is told, f32 [K, T, D]. */
  async conditions(call?: CallOptions): Promise<Tensor> {
    return output(await this.#session.call('conditions', {}, {}, call), 'cond')
  }

  dispose(): void {
    this.#session.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

export interface PaintOptions extends PictureOptions, CallOptions {
  /** Shows the pictures every so many evaluations. Default 0: never. */
  previewEvery?: number
  /** Told the pictures so far, f32 [K, H, W, 3] in 0..1, which are disposed after it returns. */
  onPreview?: (pictures: Tensor, done: number, total: number) => void | Promise<void>
}

/** @internal Runs a session to its end, one evaluation a task, so that others have their turn in between. */
export async function paintAll(session: PictureSession, options: PaintOptions): Promise<Tensor> {
  const { previewEvery = 0, onPreview, signal } = options
  const tell = throttled(options.onProgress)
  const total = session.timesteps.length - session.next
  for (let done = 1; done <= total; done++) {
    const latent = await session.advance(1, undefined, { signal })
    latent.dispose()
    tell(done, total)
    if (!onPreview || previewEvery <= 0 || done % previewEvery !== 0 || done === total) continue
    using preview = await session.decode({ signal })
    await onPreview(preview, done, total)
  }
  return session.decode({ signal })
}
