import { DeemError } from '../errors.js'
import { type CallOptions, throttled } from '../task.js'
import type { ChoiceRules, Next, Sampling, TextSession } from './text-session.js'

export interface DecodeOptions extends Sampling, Omit<ChoiceRules, 'allowed'>, CallOptions {
  /** Default 32. */
  maxNewTokens?: number
  /** Rows end no earlier; the bos that returned ids begin with counts. Default 0. */
  minLength?: number
  /** Of the draws: one for all rows, which then get it plus their index, or one a row. Default 0. */
  seed?: number | readonly number[]
  /** Also gives so many likeliest ids at every place. Default 0. */
  alternatives?: number
  /** What may come next in a row that was written so far as `ids`; undefined or nothing: anything. */
  allowed?: (row: number, ids: readonly number[]) => readonly number[] | undefined
}

export interface DecodeStep extends Next {
  /** Rows that had not ended before this token. */
  alive: boolean[]
  /** Rows that this token ends, by a stop id. */
  ended: boolean[]
}

/**
 * Writes one token a row at a time, until every row has met a stop id or the limit. Rows that have ended go on as `pad`, their
 * results mean nothing. To be left at any time; the session then holds what was appended so far.
 */
export async function* decode(
  session: TextSession,
  { stops, pad }: { stops: readonly number[]; pad: number },
  options: DecodeOptions = {},
): AsyncGenerator<DecodeStep, void, undefined> {
  const { maxNewTokens = 32, minLength = 0, seed = 0, banned = [], allowed, signal, onProgress, ...choice } = options
  checkLimits(maxNewTokens, minLength)
  const tell = throttled(onProgress)
  const seeds = typeof seed === 'number' ? Array.from({ length: session.rows }, (_, r) => seed + r) : seed
  const written: number[][] = Array.from({ length: session.rows }, () => [])
  let alive = written.map(() => true)
  let last: number[] | undefined
  for (let step = 0; step < maxNewTokens && alive.some(Boolean); step++) {
    const y = await session.next(
      last,
      {
        ...choice,
        seeds,
        banned: step + 1 < minLength ? [...banned, ...stops] : banned,
        allowed: allowed ? written.map((ids, r) => (alive[r] && allowed(r, ids)) || []) : [],
      },
      { signal },
    )
    const ids = y.ids.map((id, r) => (alive[r] ? id : pad))
    const ended = ids.map((id, r) => alive[r] === true && stops.includes(id))
    for (const [r, id] of ids.entries()) written[r]?.push(id)
    yield { ...y, ids, alive, ended }
    tell(step + 1, maxNewTokens)
    alive = alive.map((a, r) => a && !ended[r])
    last = ids
  }
}

/** @internal */
export function checkLimits(maxNewTokens: number, minLength: number): void {
  if (!(Number.isSafeInteger(maxNewTokens) && maxNewTokens >= 1))
    throw new DeemError('ERR_CONFIG', `maxNewTokens must be a whole number of at least 1 but is ${maxNewTokens}`)
  if (!(Number.isSafeInteger(minLength) && minLength >= 0))
    throw new DeemError('ERR_CONFIG', `minLength must be a whole number of at least 0 but is ${minLength}`)
}
