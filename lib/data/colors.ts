import { DeemError } from '../errors.js'
import type { HostTensor } from '../host-tensor.js'
import { backgrounds } from './nouns.js'

/** Which named background a picture has, seen from its rim. */
export interface MeasuredBackground {
  /** Index into {@link backgrounds}. */
  background: number
  /** Median of the rim, per channel, 0..1. */
  rgb: [number, number, number]
  /** Distance from the named colour; jitter alone gives at most 0.07. */
  distance: number
}

/** Measures each picture of `[N, H, W, 3]` in 0..1: the nearest named colour to the median of a rim 1/16 of the side wide. */
export function measureBackgrounds(images: HostTensor<'f32'>): MeasuredBackground[] {
  const [count = 0, height = 0, width = 0, channels] = images.shape
  if (images.shape.length !== 4 || channels !== 3) {
    throw new DeemError(
      'ERR_SHAPE',
      `[measureBackgrounds] images must be [N, H, W, 3] but have shape [${images.shape}]`,
    )
  }
  const rim = Math.max(1, Math.round(Math.min(height, width) / 16))
  const inside = (at: number, side: number): boolean => at >= rim && at < side - rim
  const places: number[] = []
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) if (!(inside(y, height) && inside(x, width))) places.push((y * width + x) * 3)
  }
  return Array.from({ length: count }, (_, i) => {
    const start = i * height * width * 3
    const channel = (c: number): number =>
      median(Float32Array.from(places, (place) => images.data[start + place + c] as number))
    return nearest([channel(0), channel(1), channel(2)])
  })
}

function nearest(rgb: [number, number, number]): MeasuredBackground {
  const distances = backgrounds.map((named) => Math.hypot(...named.rgb.map((value, c) => value - (rgb[c] as number))))
  const distance = Math.min(...distances)
  return { background: distances.indexOf(distance), rgb, distance }
}

function median(values: Float32Array): number {
  values.sort()
  return values[values.length >> 1] ?? Number.NaN
}
