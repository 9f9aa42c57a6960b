import { DeemError } from '../errors.js'
import { hostTensor } from '../host-tensor.js'
import { checkPicture, type Picture } from './decode.js'
import { loadSharp } from './sharp.js'

export type Filter = 'bicubic' | 'lanczos'

/** Kernels by distance in pixels, and where they end. */
const filters: Record<Filter, { reach: number; weight: (x: number) => number; library: 'cubic' | 'lanczos3' }> = {
  bicubic: { reach: 2, weight: catmullRom, library: 'cubic' },
  lanczos: { reach: 3, weight: lanczos3, library: 'lanczos3' },
}

/**
 * A picture at another size; the kernel widens when shrinking (antialias), values stay in 0..1.
 * Shrinking is sharp's. Enlarging is done here: libvips places enlarged pictures a quarter of an old pixel off at twice the
 * size, more beyond, against what every other reader of pictures does.
 */
export async function resize(
  picture: Picture,
  width: number,
  height: number,
  filter: Filter = 'bicubic',
): Promise<Picture> {
  const from = checkPicture('resize', picture)
  for (const side of [width, height]) {
    if (!(Number.isInteger(side) && side >= 1))
      throw new DeemError('ERR_VALUE', `[resize] no size ${width} x ${height}`)
  }
  const small = await shrink(picture, Math.min(width, from.width), Math.min(height, from.height), filter)
  return enlarge(small, width, height, filter)
}

async function shrink(picture: Picture, width: number, height: number, filter: Filter): Promise<Picture> {
  const from = checkPicture('resize', picture)
  if (width === from.width && height === from.height) return picture
  const sharp = await loadSharp()
  // 16 bits: sharp has no float pictures, and 8 bits would round twice.
  const words = Uint16Array.from(picture.data, (value) => Math.min(65535, Math.max(0, Math.round(value * 65535))))
  const out = await sharp(words, {
    raw: { width: from.width, height: from.height, channels: 3 },
    limitInputPixels: false,
  })
    .toColourspace('rgb16')
    .resize(width, height, { fit: 'fill', kernel: filters[filter].library })
    .raw({ depth: 'ushort' })
    .toBuffer()
  const seen = new Uint16Array(out.buffer, out.byteOffset, out.length / 2)
  return hostTensor(
    Float32Array.from(seen, (value) => value / 65535),
    [height, width, 3],
  )
}

function enlarge(picture: Picture, width: number, height: number, filter: Filter): Picture {
  const from = checkPicture('resize', picture)
  if (width === from.width && height === from.height) return picture
  const across = taps(from.width, width, filter)
  const down = taps(from.height, height, filter)
  const wide = new Float32Array(from.height * width * 3)
  for (let y = 0; y < from.height; y++) {
    for (let x = 0; x < width; x++) {
      const { first, weights } = across[x] as Taps
      sum(wide, (y * width + x) * 3, picture.data, (y * from.width + first) * 3, 3, weights)
    }
  }
  const out = new Float32Array(height * width * 3)
  for (let y = 0; y < height; y++) {
    const { first, weights } = down[y] as Taps
    for (let x = 0; x < width; x++) sum(out, (y * width + x) * 3, wide, (first * width + x) * 3, width * 3, weights)
  }
  for (let i = 0; i < out.length; i++) out[i] = Math.min(1, Math.max(0, out[i] as number))
  return hostTensor(out, [height, width, 3])
}

/** out[to + c] = sum over k of weights[k] * from[at + k * stride + c] */
function sum(out: Float32Array, to: number, from: Float32Array, at: number, stride: number, weights: number[]): void {
  let [r, g, b] = [0, 0, 0]
  for (let k = 0; k < weights.length; k++) {
    const weight = weights[k] as number
    const place = at + k * stride
    r += weight * (from[place] as number)
    g += weight * (from[place + 1] as number)
    b += weight * (from[place + 2] as number)
  }
  out[to] = r
  out[to + 1] = g
  out[to + 2] = b
}

interface Taps {
  first: number
  weights: number[]
}

/** For each of `to` pixels, which of `from` pixels it sees; pixel centres lie at half coordinates, weights sum to 1. */
function taps(from: number, to: number, filter: Filter): Taps[] {
  const { reach, weight } = filters[filter]
  return Array.from({ length: to }, (_, i) => {
    const center = ((i + 0.5) * from) / to
    const first = Math.max(0, Math.ceil(center - reach - 0.5))
    const last = Math.min(from - 1, Math.floor(center + reach - 0.5))
    const weights = Array.from({ length: last - first + 1 }, (_w, k) => weight(first + k + 0.5 - center))
    const total = weights.reduce((a, b) => a + b, 0)
    return { first, weights: weights.map((value) => value / total) }
  })
}

/** Cubic convolution with a = -1/2. Keys, IEEE ASSP 29 (1981) 1153. */
function catmullRom(x: number): number {
  const d = Math.abs(x)
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1
  return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0
}

function lanczos3(x: number): number {
  if (x === 0) return 1
  const p = Math.PI * x
  return Math.abs(x) < 3 ? (3 * Math.sin(p) * Math.sin(p / 3)) / (p * p) : 0
}
