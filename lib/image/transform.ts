import { DeemError } from '../errors.js'
import { hostTensor } from '../host-tensor.js'
import { checkPicture, decodeImage, type ImageDecodeOptions, type ImageSource, type Picture } from './decode.js'
import { type Filter, resize } from './resize.js'

/** Red, green, blue, each in 0..1. */
export type Color = readonly [number, number, number]

/** The rectangle with its left top corner at (x, y); it must lie inside. */
export function crop(picture: Picture, x: number, y: number, width: number, height: number): Picture {
  const from = checkPicture('crop', picture)
  const whole = [x, y, width, height].every(Number.isInteger)
  if (!whole || x < 0 || y < 0 || width < 1 || height < 1 || x + width > from.width || y + height > from.height) {
    const asked = `${width} x ${height} at (${x}, ${y})`
    throw new DeemError('ERR_VALUE', `[crop] must lie inside ${from.width} x ${from.height} but got ${asked}`)
  }
  const out = new Float32Array(width * height * 3)
  for (let row = 0; row < height; row++) {
    const start = ((y + row) * from.width + x) * 3
    out.set(picture.data.subarray(start, start + width * 3), row * width * 3)
  }
  return hostTensor(out, [height, width, 3])
}

/** The middle; with an odd rest the left or upper rim is the narrower. */
export function centerCrop(picture: Picture, width: number, height: number = width): Picture {
  const from = checkPicture('centerCrop', picture)
  return crop(picture, Math.floor((from.width - width) / 2), Math.floor((from.height - height) / 2), width, height)
}

/** Left becomes right. */
export function flipHorizontal(picture: Picture): Picture {
  const { width, height } = checkPicture('flipHorizontal', picture)
  const out = new Float32Array(picture.data.length)
  for (let at = 0; at < width * height; at++) {
    const x = at % width
    const from = (at - x + width - 1 - x) * 3
    for (let c = 0; c < 3; c++) out[at * 3 + c] = picture.data[from + c] as number
  }
  return hostTensor(out, picture.shape)
}

/** The picture in the middle of a larger canvas of one colour (default black). */
export function pad(picture: Picture, width: number, height: number = width, color: Color = [0, 0, 0]): Picture {
  const from = checkPicture('pad', picture)
  if (!(Number.isInteger(width) && Number.isInteger(height) && width >= from.width && height >= from.height)) {
    const asked = `${width} x ${height}`
    throw new DeemError('ERR_VALUE', `[pad] needs at least ${from.width} x ${from.height} but got ${asked}`)
  }
  const out = Float32Array.from({ length: width * height * 3 }, (_, i) => color[i % 3] as number)
  const [x, y] = [Math.floor((width - from.width) / 2), Math.floor((height - from.height) / 2)]
  for (let row = 0; row < from.height; row++) {
    const line = picture.data.subarray(row * from.width * 3, (row + 1) * from.width * 3)
    out.set(line, ((y + row) * width + x) * 3)
  }
  return hostTensor(out, [height, width, 3])
}

/** How a picture of any shape becomes a square. */
export interface SquareOptions {
  /** `stretch` ignores the shape, `cover` cuts the long side, `contain` adds a border. Default `cover`. */
  fit?: 'stretch' | 'cover' | 'contain'
  filter?: Filter
  flip?: boolean
  /** Of the border. Default black. */
  color?: Color
}

/** A square of `side` pixels. */
export async function square(picture: Picture, side: number, options: SquareOptions = {}): Promise<Picture> {
  const { width, height } = checkPicture('square', picture)
  const { fit = 'cover', filter = 'bicubic' } = options
  let out: Picture
  if (fit === 'stretch') {
    out = await resize(picture, side, side, filter)
  } else {
    const scale = side / (fit === 'cover' ? Math.min(width, height) : Math.max(width, height))
    const scaled = (length: number): number => Math.max(1, Math.round(length * scale))
    const fitted = await resize(picture, scaled(width), scaled(height), filter)
    out = fit === 'cover' ? centerCrop(fitted, side) : pad(fitted, side, side, options.color)
  }
  return options.flip === true ? flipHorizontal(out) : out
}

/** One picture at the two sizes a training step needs; both show the same part of it. */
export interface TwoViews {
  encoder: Picture
  decoder: Picture
}

/** @param sides pixels of the encoder's and of the decoder's picture, e.g. 256 and 512 */
export async function twoViews(
  source: ImageSource,
  sides: { encoder: number; decoder: number },
  options: SquareOptions & ImageDecodeOptions = {},
): Promise<TwoViews> {
  const picture = await decodeImage(source, options)
  const encoder = await square(picture, sides.encoder, options)
  const decoder = sides.decoder === sides.encoder ? encoder : await square(picture, sides.decoder, options)
  return { encoder, decoder }
}
