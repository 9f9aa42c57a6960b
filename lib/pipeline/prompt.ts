/** Prompts as people write them to tensors as the model takes them. */
import { DeemError } from '../errors.js'
import { stack } from '../host-tensor.js'
import {
  decodeImage,
  type ImageDecodeOptions,
  type ImageSource,
  maskPicture,
  type Picture,
  type Region,
  regionMask,
  type SquareOptions,
  square,
} from '../image/index.js'
import type { DeemInputs } from '../models/deem.js'
import { buildSequences, type Part, text } from '../sequence.js'
import { type Tensor, tensor } from '../tensor.js'
import type { Tokenizer } from '../tokenizer/index.js'

/** A picture of which the encoder passes on a region alone; the rest of the picture is still there for the language model to look at. */
export interface RegionOf {
  source: ImageSource
  region: Region
}

/** Words, or words and pictures in reading order. */
export type Prompt = string | readonly Part<ImageSource | RegionOf>[]

/** `image(within('cat.png', { box: [10, 10, 60, 40] }))` asks about a part of a picture. */
export function within(source: ImageSource, region: Region): RegionOf {
  return { source, region }
}

const isRegion = (v: ImageSource | RegionOf): v is RegionOf => typeof v === 'object' && 'region' in v

/** How pictures of any shape are brought to the model's size. */
export type PictureFit = SquareOptions & ImageDecodeOptions

/** What the pipeline knows of its model. */
export interface Geometry {
  /** Slots of a picture in a row of ids. */
  imageTokens: number
  /** Pixels along a side, of the encoder's pictures and of painted ones. */
  encoderSide: number
  painterSide: number
  /** Positions a row may have. */
  maxLength: number
}

export function geometryOf(config: object): Geometry {
  const c = config as {
    num_img_token: number
    image_size_in: number
    sd: { image_size: number }
    llm: { max_position_embeddings: number }
  }
  return {
    imageTokens: c.num_img_token,
    encoderSide: c.image_size_in,
    painterSide: c.sd.image_size,
    maxLength: c.llm.max_position_embeddings,
  }
}

export const partsOf = (prompt: Prompt): readonly Part<ImageSource | RegionOf>[] =>
  typeof prompt === 'string' ? [text(prompt)] : prompt

/** Left-padded rows, and their pictures at the encoder's size. */
export async function promptInputs(
  prompts: readonly Prompt[],
  tokenizer: Tokenizer,
  geometry: Geometry,
  { bos = true, ...fit }: PictureFit & { bos?: boolean } = {},
): Promise<DeemInputs> {
  if (prompts.length === 0) throw new DeemError('ERR_VALUE', 'there is no prompt')
  const { inputs, images } = buildSequences(prompts.map(partsOf), {
    tokenizer,
    imageTokens: geometry.imageTokens,
    maxLength: geometry.maxLength,
    truncate: 'error',
    padding: 'left',
    bos,
    eos: false,
  })
  const views = await Promise.all(images.map((one) => viewOf(one, geometry.encoderSide, fit)))
  const masks = views.some(({ mask }) => mask !== undefined)
  return {
    text_ids: tensor(inputs.text_ids.data, inputs.text_ids.shape),
    attention_mask: tensor(inputs.attention_mask.data, inputs.attention_mask.shape),
    num_image_per_seq: tensor(inputs.num_image_per_seq.data, inputs.num_image_per_seq.shape),
    ...(views.length > 0 && { image_tensors: pictureTensor(views.map(({ picture }) => picture)) }),
    ...(masks && {
      image_tensors_mask: maskTensor(
        views.map(({ mask }) => mask),
        geometry.encoderSide,
      ),
    }),
  }
}

/** A picture at the encoder's size, and its region there, 1 inside. */
async function viewOf(
  one: ImageSource | RegionOf,
  side: number,
  fit: PictureFit,
): Promise<{ picture: Picture; mask?: Float32Array }> {
  const picture = await decodeImage(isRegion(one) ? one.source : one, fit)
  const view = { picture: await square(picture, side, fit) }
  if (!isRegion(one)) return view
  const [height = 0, width = 0] = picture.shape
  const whole = maskPicture(regionMask(one.region, width, height), width, height)
  const { data } = await square(whole, side, { ...fit, color: [0, 0, 0] })
  const covered = Float32Array.from({ length: side * side }, (_, i) => data[3 * i] as number)
  // Half of a pixel or more; of a region smaller than that, what is covered best.
  const enough = Math.min(0.5, covered.reduce((a, v) => Math.max(a, v), 0) / 2)
  return { ...view, mask: covered.map((v) => (v > 0 && v >= enough ? 1 : 0)) }
}

function maskTensor(masks: readonly (Float32Array | undefined)[], side: number): Tensor {
  const data = new Float32Array(masks.length * side * side).fill(1)
  for (const [i, mask] of masks.entries()) if (mask) data.set(mask, i * side * side)
  return tensor(data, [masks.length, side, side, 1])
}

export function pictureTensor(pictures: readonly Picture[]): Tensor {
  const { data, shape } = stack(pictures)
  return tensor(data, shape)
}

/** The pictures of f32 [N, H, W, 3], which is disposed. */
export async function picturesOf(batch: Tensor): Promise<Picture[]> {
  const [count = 0, ...shape] = batch.shape
  const all = (await batch.data()) as Float32Array
  batch.dispose()
  const size = all.length / Math.max(1, count)
  return Array.from({ length: count }, (_, i) => ({ dtype: 'f32', shape, data: all.slice(i * size, (i + 1) * size) }))
}

export function disposeInputs(inputs: Record<string, Tensor | undefined>): void {
  for (const t of Object.values(inputs)) t?.dispose()
}
