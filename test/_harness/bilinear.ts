// Bilinear sampling in float64, for the references of the deformable attentions.
import type { F64 } from './op.js'

export type LevelShapes = [number, number][]

/** Adds `weight` times the sample at pixel (x, y), zero outside, of channels [from, from + width) of the rows at `row`. */
export function addSample(
  out: Float64Array,
  to: number,
  value: F64,
  row: number,
  [height, wide]: [number, number],
  [from, width]: [number, number],
  [x, y]: [number, number],
  weight: number,
): void {
  const left = Math.floor(x)
  const top = Math.floor(y)
  const channels = value.data.length / value.shape.slice(0, -1).reduce((a, v) => a * v, 1)
  for (const [line, wy] of [
    [top, 1 - (y - top)],
    [top + 1, y - top],
  ] as const)
    for (const [column, wx] of [
      [left, 1 - (x - left)],
      [left + 1, x - left],
    ] as const) {
      if (!(line >= 0 && line < height && column >= 0 && column < wide)) continue
      const at = (row + line * wide + column) * channels + from
      for (let c = 0; c < width; c++) (out[to + c] as number) += wx * wy * weight * (value.data[at + c] as number)
    }
}
