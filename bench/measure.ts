import { setTimeout } from 'node:timers/promises'

/** Sides measured in alternation, so that whatever else the machine does meets all of them; ratios are taken round by round. */

export interface Side {
  name: string
  /** Times `batches` batches of `runs` runs each; the seconds of each batch. */
  run(batches: number, runs: number): Promise<number[]>
}

/** Quartiles. */
export interface Spread {
  low: number
  median: number
  high: number
}

export interface Timing {
  name: string
  /** Seconds a run. */
  seconds: Spread
  /** Runs in each round. */
  times: number
}

export interface Measured {
  timings: Timing[]
  /** For each side but the first: its seconds over those of the first, round by round. */
  ratios: { name: string; ratio: Spread }[]
}

function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1)
  const low = sorted[Math.floor(at)] as number
  const high = sorted[Math.ceil(at)] as number
  return low + (high - low) * (at - Math.floor(at))
}

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  return { low: quantile(sorted, 0.25), median: quantile(sorted, 0.5), high: quantile(sorted, 0.75) }
}

/** Seconds that a round of one side is to last; longer work makes rounds of one run. */
const roundSeconds = 0.1
/** Shorter work is timed in batches: a clock costs time too. */
const batchSeconds = 5e-4
const warmupSeconds = 0.02
/** Threads of the side before may look for work for a while: onnxruntime's took a third of a core's time from a side that began at once. */
const restSeconds = 0.1

interface Plan {
  batches: number
  runs: number
}

/** Enough to fill a round, after a first run that builds and caches whatever the work needs. */
async function calibrate(side: Side): Promise<Plan> {
  await side.run(1, 1)
  const [second] = await side.run(1, 1)
  if ((second as number) > 10 * roundSeconds) return { runs: 1, batches: 1 } // more runs would say nothing new of minutes of work
  for (let runs = 1; ; runs *= 4) {
    const one = Math.min(...(await side.run(3, runs))) / runs
    if (one * runs < batchSeconds / 4) continue
    const batch = Math.max(1, Math.ceil(batchSeconds / one))
    return { runs: batch, batches: Math.max(1, Math.round(roundSeconds / (one * batch))) }
  }
}

/**
 * Seconds a run in one round: the median of its batches. On a machine with other work a mean would be that of the few batches in which
 * a thread had to wait for a core.
 */
async function round(side: Side, { batches, runs }: Plan): Promise<number> {
  await setTimeout(1000 * restSeconds)
  // Caches hold what the other side left, and threads may be asleep; a single long run does not notice.
  if (batches > 1) await side.run(Math.ceil((batches * warmupSeconds) / roundSeconds), runs)
  return spread(await side.run(batches, runs)).median / runs
}

/** The first side is the one that the others are compared with. */
export async function measure(sides: readonly Side[], rounds: number): Promise<Measured> {
  const plans: Plan[] = []
  for (const side of sides) plans.push(await calibrate(side))
  const seconds: number[][] = sides.map(() => [])
  for (let r = 0; r < rounds; r++)
    for (const [i, side] of sides.entries()) seconds[i]?.push(await round(side, plans[i] as Plan))
  const first = seconds[0] as number[]
  return {
    timings: sides.map(({ name }, i) => {
      const { batches, runs } = plans[i] as Plan
      return { name, seconds: spread(seconds[i] as number[]), times: batches * runs }
    }),
    ratios: sides.slice(1).map(({ name }, i) => ({
      name,
      ratio: spread((seconds[i + 1] as number[]).map((s, r) => s / (first[r] as number))),
    })),
  }
}

/** A side that works in this process. */
export function inProcess(name: string, run: (times: number) => Promise<void>): Side {
  return {
    name,
    run: async (batches, runs) => {
      const out: number[] = []
      for (let i = 0; i < batches; i++) {
        const begin = performance.now()
        await run(runs)
        out.push((performance.now() - begin) / 1000)
      }
      return out
    },
  }
}
