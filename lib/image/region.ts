/** Regions of pictures: what of a picture the encoder passes on. */
import { DeemError } from '../errors.js'
import { hostTensor } from '../host-tensor.js'
import type { Picture } from './decode.js'

/** Pixels of the picture as it was given, x to the right, y down. */
export type Region =
  | { box: readonly [x: number, y: number, width: number, height: number] }
  /** Corners in order; several polygons add up. A pixel belongs to it if its centre lies inside (even-odd rule). */
  | { polygons: readonly (readonly (readonly [x: number, y: number])[])[] }
  /** As COCO writes it: runs of zeros and ones in columns, as numbers or as its compressed string. */
  | { rle: { size: readonly [height: number, width: number]; counts: string | readonly number[] } }
  /** [height][width] row by row, above 0 where the region is. */
  | { mask: { data: ArrayLike<number>; width: number; height: number } }

/** 1 inside of a region and 0 outside, row by row. Throws ERR_VALUE or ERR_FORMAT for what does not fit the picture. */
export function regionMask(region: Region, width: number, height: number): Uint8Array {
  if ('box' in region) return boxMask(region.box, width, height)
  if ('polygons' in region) return polygonMask(region.polygons, width, height)
  if ('rle' in region) return decodeRle(region.rle, width, height)
  const { data, ...size } = region.mask
  checkSize(size.width, size.height, width, height)
  if (data.length !== width * height)
    throw new DeemError(
      'ERR_VALUE',
      `[region] a mask of ${width} x ${height} needs ${width * height} values but has ${data.length}`,
    )
  return Uint8Array.from(data, (v) => (v > 0 ? 1 : 0))
}

/** The mask as a picture, so that it takes the same way to the model's size as its picture. */
export function maskPicture(mask: Uint8Array, width: number, height: number): Picture {
  const data = new Float32Array(3 * mask.length)
  for (let i = 0; i < data.length; i++) data[i] = mask[Math.floor(i / 3)] as number
  return hostTensor(data, [height, width, 3])
}

function checkSize(w: number, h: number, width: number, height: number): void {
  if (w !== width || h !== height)
    throw new DeemError(
      'ERR_VALUE',
      `[region] it is for a picture of ${w} x ${h} but this one has ${width} x ${height}`,
    )
}

function boxMask([x, y, w, h]: readonly [number, number, number, number], width: number, height: number): Uint8Array {
  if (![x, y, w, h].every(Number.isFinite) || w <= 0 || h <= 0)
    throw new DeemError(
      'ERR_VALUE',
      `[region] a box needs x, y and a positive width and height but is [${[x, y, w, h]}]`,
    )
  return filled(width, height, (column, row) => column >= x && column < x + w && row >= y && row < y + h)
}

function polygonMask(
  polygons: readonly (readonly (readonly [number, number])[])[],
  width: number,
  height: number,
): Uint8Array {
  const mask = new Uint8Array(width * height)
  for (const corners of polygons) {
    if (corners.length < 3 || !corners.every(([x, y]) => Number.isFinite(x) && Number.isFinite(y)))
      throw new DeemError('ERR_VALUE', '[region] a polygon needs three corners or more, each a pair of numbers')
    for (let row = 0; row < height; row++) {
      const y = row + 0.5
      const cuts: number[] = []
      corners.forEach(([x1, y1], i) => {
        const [x2, y2] = corners[(i + 1) % corners.length] as readonly [number, number]
        if (y1 <= y !== y2 <= y) cuts.push(x1 + ((y - y1) / (y2 - y1)) * (x2 - x1))
      })
      cuts.sort((a, b) => a - b)
      for (let i = 0; i + 1 < cuts.length; i += 2) {
        const from = Math.max(0, Math.ceil((cuts[i] as number) - 0.5))
        const to = Math.min(width, Math.ceil((cuts[i + 1] as number) - 0.5))
        if (to > from) mask.fill(1, row * width + from, row * width + to)
      }
    }
  }
  return mask
}

function filled(width: number, height: number, inside: (x: number, y: number) => boolean): Uint8Array {
  return Uint8Array.from({ length: width * height }, (_, i) =>
    inside((i % width) + 0.5, Math.floor(i / width) + 0.5) ? 1 : 0,
  )
}

/** Runs down the columns, zeros first; the string holds five bits a character, each run as its difference to the last but one. */
function decodeRle(
  { size, counts }: { size: readonly [number, number]; counts: string | readonly number[] },
  width: number,
  height: number,
): Uint8Array {
  const [h, w] = size
  checkSize(w, h, width, height)
  const total = width * height
  const runs = typeof counts === 'string' ? unpackRuns(counts, total) : counts
  const mask = new Uint8Array(total)
  let at = 0
  for (const [i, run] of runs.entries()) {
    if (!Number.isSafeInteger(run) || run < 0 || at + run > total)
      throw new DeemError('ERR_FORMAT', `[region] run ${i} of an RLE, ${run}, reaches beyond its ${total} pixels`)
    if (i % 2 === 1) for (let k = at; k < at + run; k++) mask[(k % height) * width + Math.floor(k / height)] = 1
    at += run
  }
  if (at !== total) throw new DeemError('ERR_FORMAT', `[region] the runs of an RLE cover ${at} of ${total} pixels`)
  return mask
}

function unpackRuns(packed: string, total: number): number[] {
  const runs: number[] = []
  for (let p = 0; p < packed.length; ) {
    let value = 0
    for (let k = 0; ; k++) {
      const c = packed.charCodeAt(p++) - 48
      // Five bits each: more than six characters are more than any run can be.
      if (!(c >= 0 && c < 64) || k > 5)
        throw new DeemError('ERR_FORMAT', `[region] an RLE is damaged at character ${p - 1}`)
      value |= (c & 0x1f) << (5 * k)
      if (c & 0x20) continue
      if (c & 0x10) value |= -1 << (5 * (k + 1))
      break
    }
    if (runs.length > 2) value += runs[runs.length - 2] as number
    runs.push(value)
    if (runs.length > total + 2)
      throw new DeemError('ERR_FORMAT', `[region] an RLE has more runs than its ${total} pixels`)
  }
  return runs
}
