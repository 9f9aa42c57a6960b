/** Prompts as people write them to tensors as the model takes them. */
import { DeemError } from '../errors.js'
import { stack } from '../host-tensor.js'
import {
  type DecodeOptions,
  decodeImage,
  type ImageSource,
  type Picture,
  type SquareOptions,
  square,
} from '../image/index.js'
import type { DeemInputs } from '../models/deem.js'
import { buildSequences, type Part, text } from '../sequence.js'
import { type Tensor, tensor } from '../tensor.js'
import type { Tokenizer } from '../tokenizer/index.js'

/** Words, or words and pictures in reading order. */
export type Prompt = string | readonly Part<ImageSource>[]

/** How pictures of any shape are brought to the model's size. */
export type PictureFit = SquareOptions & DecodeOptions

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

export const partsOf = (prompt: Prompt): readonly Part<ImageSource>[] =>
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
  const pictures = await Promise.all(
    images.map(async (source) => square(await decodeImage(source, fit), geometry.encoderSide, fit)),
  )
  return {
    text_ids: tensor(inputs.text_ids.data, inputs.text_ids.shape),
    attention_mask: tensor(inputs.attention_mask.data, inputs.attention_mask.shape),
    num_image_per_seq: tensor(inputs.num_image_per_seq.data, inputs.num_image_per_seq.shape),
    ...(pictures.length > 0 && { image_tensors: pictureTensor(pictures) }),
  }
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
