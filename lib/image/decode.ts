import { readFile } from 'node:fs/promises'
import { causedBy, DeemError } from '../errors.js'
import { type HostTensor, hostTensor } from '../host-tensor.js'
import { loadSharp } from './sharp.js'

/** Pixels as they come from a camera or a canvas: rows of 1 (gray), 3 (RGB) or 4 (RGBA) bytes. */
export interface RawImage {
  data: Uint8Array
  width: number
  height: number
  channels: 1 | 3 | 4
}

/** One picture, `[height, width, 3]` in 0..1. */
export type Picture = HostTensor<'f32'>

/** A file's path or URL, the bytes of a file (PNG, JPEG, WebP, AVIF, GIF, TIFF, SVG), raw pixels, or a decoded picture. */
export type ImageSource = string | URL | Uint8Array | RawImage | Picture

export interface ImageDecodeOptions {
  /** Pictures with more pixels are refused before they are decoded. Default 2^26 (8192 x 8192). */
  limitPixels?: number
  /** What shows through transparent pixels, 0..1. Default white. */
  background?: readonly [number, number, number]
}

/** Any source to RGB in 0..1: turned as its EXIF says, the first frame of animations, transparency over a background. */
export async function decodeImage(source: ImageSource, options: ImageDecodeOptions = {}): Promise<Picture> {
  const limit = options.limitPixels ?? 2 ** 26
  if (!(Number.isSafeInteger(limit) && limit >= 1)) {
    throw new DeemError('ERR_VALUE', `[decodeImage] limitPixels must be a positive integer but got ${limit}`)
  }
  if (isPicture(source)) {
    checkPicture('decodeImage', source)
    checkLimit((source.shape[0] as number) * (source.shape[1] as number), limit)
    return source
  }
  const raw = isRaw(source) ? checkedRaw(source) : undefined
  if (raw !== undefined) checkLimit(raw.width * raw.height, limit)
  const bytes = raw?.data ?? (await bytesOf(source as string | URL | Uint8Array))
  const sharp = await loadSharp()
  const [r, g, b] = (options.background ?? [1, 1, 1]).map((value) => Math.round(value * 255))
  try {
    const input = raw === undefined ? {} : { raw: { width: raw.width, height: raw.height, channels: raw.channels } }
    const { data, info } = await sharp(bytes, { ...input, limitInputPixels: limit, failOn: 'truncated' })
      .autoOrient()
      .flatten({ background: { r: r as number, g: g as number, b: b as number } })
      .toColourspace('srgb')
      .removeAlpha()
      .raw()
      .toBuffer({ resolveWithObject: true })
    return hostTensor(
      Float32Array.from(data, (value) => value / 255),
      [info.height, info.width, 3],
    )
  } catch (cause) {
    const huge = cause instanceof Error && /pixel limit/i.test(cause.message)
    if (huge) throw causedBy(cause, 'ERR_VALUE', `[decodeImage] pictures must have at most ${limit} pixels`)
    throw causedBy(cause, 'ERR_FORMAT', `[decodeImage] ${nameOf(source)} is not a picture that can be read`)
  }
}

/** A picture as a PNG file. Values outside 0..1 are clamped. */
export async function encodePng(picture: Picture): Promise<Buffer> {
  const { height, width } = checkPicture('encodePng', picture)
  const bytes = Uint8Array.from(picture.data, (value) => Math.min(255, Math.max(0, Math.round(value * 255))))
  const sharp = await loadSharp()
  return sharp(bytes, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer()
}

/** Picture `index` of a batch `[N, H, W, 3]`; shares its memory. */
export function pictureAt(batch: HostTensor<'f32'>, index: number): Picture {
  const [count = 0, ...shape] = batch.shape
  if (batch.shape.length !== 4 || !(Number.isInteger(index) && index >= 0 && index < count)) {
    throw new DeemError('ERR_INDEX', `[pictureAt] no picture ${index} in a tensor of shape [${batch.shape}]`)
  }
  const size = shape.reduce((a, b) => a * b, 1)
  return hostTensor(batch.data.subarray(index * size, (index + 1) * size), shape)
}

/** @internal Throws unless it is `[height, width, 3]` with pixels. */
export function checkPicture(where: string, picture: Picture): { height: number; width: number } {
  const [height = 0, width = 0, channels] = picture.shape
  if (picture.shape.length !== 3 || channels !== 3 || height < 1 || width < 1) {
    throw new DeemError('ERR_SHAPE', `[${where}] a picture must be [height, width, 3] but has shape [${picture.shape}]`)
  }
  return { height, width }
}

function checkLimit(pixels: number, limit: number): void {
  if (pixels > limit) {
    throw new DeemError(
      'ERR_VALUE',
      `[decodeImage] pictures must have at most ${limit} pixels but this one has ${pixels}`,
    )
  }
}

function checkedRaw(raw: RawImage): RawImage {
  const { data, width, height, channels } = raw
  const size = width * height * channels
  if (![1, 3, 4].includes(channels) || !(Number.isInteger(width) && Number.isInteger(height)) || size < 1) {
    throw new DeemError('ERR_SHAPE', `[decodeImage] no raw picture of ${width} x ${height} x ${channels}`)
  }
  if (data.length !== size) {
    throw new DeemError(
      'ERR_SHAPE',
      `[decodeImage] ${width} x ${height} x ${channels} needs ${size} bytes but got ${data.length}`,
    )
  }
  return raw
}

async function bytesOf(source: string | URL | Uint8Array): Promise<Uint8Array> {
  if (source instanceof Uint8Array) return source
  try {
    return await readFile(source)
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `[decodeImage] cannot read ${source}`)
  }
}

function isPicture(source: ImageSource): source is Picture {
  return typeof source === 'object' && 'dtype' in source
}

function isRaw(source: ImageSource): source is RawImage {
  return typeof source === 'object' && 'channels' in source
}

function nameOf(source: ImageSource): string {
  return typeof source === 'string' || source instanceof URL ? String(source) : 'the given data'
}
