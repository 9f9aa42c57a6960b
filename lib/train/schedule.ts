/** A learning-rate factor for the step about to be taken, counted from 0. */
export type Schedule = (step: number) => number

/** Linear from 0 over `warmup` steps (the very first factor is 0, as published), then half a cosine down to 0 at `total`. */
export function cosineWithWarmup(warmup: number, total: number): Schedule {
  return (step) => {
    if (step < warmup) return step / Math.max(1, warmup)
    const done = (step - warmup) / Math.max(1, total - warmup)
    return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * Math.min(1, done))))
  }
}

/** Always 1, after a linear warm-up if asked. */
export function constant(warmup = 0): Schedule {
  return (step) => (step < warmup ? step / warmup : 1)
}
