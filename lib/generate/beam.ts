/** Beam search with the bookkeeping of transformers 4.31, which published DEEM results come from. */
import { DeemError } from '../errors.js'
import { type CallOptions, throttled } from '../task.js'
import { checkLimits } from './decode.js'
import type { ChoiceRules, TextSession } from './text-session.js'

export interface BeamOptions extends Omit<ChoiceRules, 'banned' | 'allowed'>, CallOptions {
  /** Beams of each prompt; the session must have been opened with as many copies. */
  numBeams: number
  maxNewTokens?: number
  minLength?: number
  /** A finished row scores its total log-probability over length ** penalty; bos counts, the stop id does not. Default 1. */
  lengthPenalty?: number
  /** Best rows returned of each prompt. Default 1. */
  numReturnSequences?: number
  /** Ends a prompt as soon as it has `numBeams` finished rows, not when no open one can beat them. Default false. */
  earlyStopping?: boolean
}

export interface Scored {
  /** From bos on, without padding; the stop id at the end where one ended it. */
  ids: number[]
  score: number
}

/** The best finished rows of one prompt. */
class Pool {
  readonly #size: number
  readonly #penalty: number
  #rows: Scored[] = []
  #worst = 1e9

  constructor(size: number, penalty: number) {
    this.#size = size
    this.#penalty = penalty
  }

  add(ids: number[], total: number): void {
    const score = total / ids.length ** this.#penalty
    if (this.#rows.length >= this.#size && score <= this.#worst) return
    this.#rows.push({ ids, score })
    if (this.#rows.length <= this.#size) {
      this.#worst = Math.min(score, this.#worst)
      return
    }
    // The earliest of the worst leaves.
    const order = this.#rows.map((row, i) => ({ row, i })).sort((a, b) => a.row.score - b.row.score || a.i - b.i)
    const gone = order[0]?.row
    this.#rows = this.#rows.filter((row) => row !== gone)
    this.#worst = order[1]?.row.score ?? 1e9
  }

  /** Whether no open row, the best with `total` at `length`, can still enter. */
  closed(total: number, length: number, early: boolean): boolean {
    return this.#rows.length >= this.#size && (early || this.#worst >= total / length ** this.#penalty)
  }

  /** Best first; of equals the later. */
  best(count: number): Scored[] {
    return [...this.#rows]
      .sort((a, b) => a.score - b.score)
      .slice(-count)
      .reverse()
  }
}

/** Searches from a session of `numBeams` copies of each prompt; `numReturnSequences` rows a prompt, best first. */
export async function beamSearch(
  session: TextSession,
  { bos, stops }: { bos: number; stops: readonly number[] },
  options: BeamOptions,
): Promise<Scored[]> {
  const { numBeams: k, maxNewTokens = 32, minLength = 0, lengthPenalty = 1, numReturnSequences = 1 } = options
  const { earlyStopping = false, signal, onProgress, ...rules } = options
  checkLimits(maxNewTokens, minLength)
  if (!(numReturnSequences >= 1 && numReturnSequences <= k))
    throw new DeemError('ERR_CONFIG', `numReturnSequences must be 1..${k} but is ${numReturnSequences}`)
  const tell = throttled(onProgress)
  const prompts = session.rows / k
  const limit = 1 + maxNewTokens
  const pools = Array.from({ length: prompts }, () => new Pool(k, lengthPenalty))
  const done = pools.map(() => false)
  let rows = Array.from({ length: session.rows }, () => [bos])
  // The copies begin alike: only the first of each prompt may go on.
  let totals: number[] = rows.map((_, i) => (i % k === 0 ? 0 : -1e9))
  let move: { from: number[]; ids: number[] } | undefined
  // Enough that every beam can go on although each stop id was among its best.
  const count = Math.max(2, 1 + stops.length) * k
  for (;;) {
    const length = (rows[0] as number[]).length
    const found = await session.beam(
      move,
      totals,
      {
        ...(rules.logitBias && { logitBias: rules.logitBias }),
        ...(rules.repetitionPenalty !== undefined && { repetitionPenalty: rules.repetitionPenalty }),
        banned: length < minLength ? stops : [],
        beams: k,
        count,
      },
      { signal },
    )
    const next: { from: number; id: number; total: number }[] = []
    for (const [p, { scores, tokens, beams }] of found.entries()) {
      const open: { from: number; id: number; total: number }[] = []
      for (let rank = 0; rank < count && open.length < k && !done[p]; rank++) {
        const [id, total, from] = [tokens[rank] as number, scores[rank] as number, p * k + (beams[rank] as number)]
        if (!stops.includes(id)) open.push({ from, id, total })
        else if (rank < k) pools[p]?.add(rows[from] as number[], total)
      }
      done[p] ||= pools[p]?.closed(Math.max(...scores), length + 1, earlyStopping) === true
      // A prompt that is done goes on as anything: nothing looks at it.
      while (open.length < k) open.push({ from: p * k, id: stops[0] as number, total: 0 })
      next.push(...open)
    }
    rows = next.map(({ from, id }) => [...(rows[from] as number[]), id])
    totals = next.map(({ total }) => total)
    move = { from: next.map(({ from }) => from), ids: next.map(({ id }) => id) }
    tell(length, maxNewTokens)
    if (done.every(Boolean) || length + 1 >= limit) break
  }
  return pools.flatMap((pool, p) => {
    if (!done[p]) for (let i = p * k; i < (p + 1) * k; i++) pool.add(rows[i] as number[], totals[i] as number)
    // Whichever stop id ended a row, the first of the list is written.
    return pool.best(numReturnSequences).map(({ ids, score }) => ({
      ids: ids.length < limit ? [...ids, stops[0] as number] : ids,
      score,
    }))
  })
}
