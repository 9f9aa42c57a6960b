/** Results as a table for people and as JSON for machines. */
import type { Pass, Precision } from './case.js'
import type { Comparison } from './compare.js'
import type { Spread } from './measure.js'
import type { Peak } from './peak.js'

export interface PeerResult {
  peer: string
  /** Seconds a run. */
  seconds?: Spread
  /** The peer's seconds over ours, round by round. */
  ratio?: Spread
  /** Resident memory of one run beyond what the process had before the case. */
  residentBytes?: number
  /** The comparison nearest to its limit. */
  worst?: Comparison
  /** Computed something else: its times mean nothing. */
  wrong?: Comparison[]
  /** Why there are no times. */
  problem?: string
}

export interface Result {
  case: string
  group: string
  pass: Pass
  precision: Precision
  threads: number
  seconds?: Spread
  /** Runs a round. */
  times?: number
  flops: number
  bytes: number
  /** Operations or bytes a second, whichever sets the floor. */
  rate?: number
  bound?: 'flops' | 'bytes'
  /** The floor by the machine's peak over our time: the peak of the same rounds, for operations that of the whole run. */
  fractionOfPeak?: number
  /** Live tensors at the peak of one run, weights and inputs included. */
  tensorBytes?: number
  /** Resident memory of one run beyond what the process had before the case. */
  residentBytes?: number
  peers: PeerResult[]
  problem?: string
}

export interface Report {
  machine: Record<string, string | number>
  versions: Record<string, unknown>
  settings: Record<string, unknown>
  peaks: ({ precision: Precision; threads: number } & Peak)[]
  results: Result[]
}

export function time(seconds: number): string {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`
  if (seconds >= 1e-3) return `${(seconds * 1e3).toFixed(seconds >= 0.1 ? 0 : 2)} ms`
  return `${(seconds * 1e6).toFixed(1)} us`
}
export const bytes = (n: number | undefined): string => (n === undefined ? '' : `${(n / 2 ** 20).toFixed(0)}M`)
/** Half the distance of the quartiles, in percent of the median. */
const noise = (s: Spread) => `±${((50 * (s.high - s.low)) / s.median).toFixed(0)}%`

export const columns =
  `${'case'.padEnd(52)} dtype thr ${'ours'.padStart(9)}  noise ${'rate'.padStart(10)} ${'peak'.padStart(5)}` +
  ` ${'memory'.padStart(7)} | ${'peer'.padEnd(13)} ${'time'.padStart(9)} ${'memory'.padStart(7)}  ratio (quartiles)`

export function lines(r: Result): string[] {
  const head = `${r.case.padEnd(52)} ${r.precision.padEnd(5)} ${String(r.threads).padStart(3)}`
  if (r.problem || !r.seconds) return [`${head} FAILED: ${r.problem}`]
  const rate = r.rate ? `${(r.rate / 1e9).toFixed(1)} ${r.bound === 'flops' ? 'GF' : 'GB'}/s` : ''
  const fraction = r.fractionOfPeak ? `${(100 * r.fractionOfPeak).toFixed(0)}%` : ''
  const ours =
    `${head} ${time(r.seconds.median).padStart(9)} ${noise(r.seconds).padStart(6)} ${rate.padStart(10)}` +
    ` ${fraction.padStart(5)} ${bytes(r.residentBytes).padStart(7)}`
  if (r.peers.length === 0) return [ours]
  return r.peers.map((p, i) => {
    const left = i === 0 ? ours : ' '.repeat(ours.length)
    if (p.wrong) {
      const all = p.wrong.map((w) => `${w.name} ${w.error.toExponential(1)} > ${w.limit.toExponential(0)}`)
      return `${left} | ${p.peer.padEnd(13)} WRONG: ${all.slice(0, 3).join(', ')}`
    }
    if (p.problem || !p.seconds || !p.ratio) return `${left} | ${p.peer.padEnd(13)} -: ${p.problem}`
    const { low, median, high } = p.ratio
    return (
      `${left} | ${p.peer.padEnd(13)} ${time(p.seconds.median).padStart(9)} ${bytes(p.residentBytes).padStart(7)}` +
      `  ${median.toFixed(2)} (${low.toFixed(2)}..${high.toFixed(2)})`
    )
  })
}
