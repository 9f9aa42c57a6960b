import type { Module, PlainTensor, SessionHandle } from '../module.js'
import type { CallOptions } from '../task.js'
import { type Tensor, tensor } from '../tensor.js'
import { type PictureOptions, PictureSession, type PictureStart } from './picture-session.js'

/** What may come next, and what is preferred. The rules apply in this order. */
export interface ChoiceRules {
  /** Ids that must not come. */
  banned?: readonly number[]
  /** For each row the only ids that may come; an empty list allows all. */
  allowed?: readonly (readonly number[])[]
  /** Added to the scores of ids. */
  logitBias?: ReadonlyMap<number, number>
  /** Above 1 makes ids that the row holds less likely (Keskar et al. 2019). Default 1. */
  repetitionPenalty?: number
}

/** What is drawn from. */
export interface Sampling {
  /** 0 (default): always the best id. */
  temperature?: number
  /** Draws among so many best ids; 0 (default): all. */
  topK?: number
  /** Draws among the fewest best ids whose probabilities reach it (Holtzman et al. 2020). Default 1: all. */
  topP?: number
  /** Draws among ids at least this likely beside the best one (Nguyen et al. 2024). Default 0: all. */
  minP?: number
}

export interface Next {
  /** One id a row. */
  ids: number[]
  /** Its log-probability under the model alone, before rules and temperature. */
  logProbs: number[]
  /** The likeliest ids of each row, best first, where they were asked for. */
  alternatives: { id: number; logProb: number }[][]
}

export interface Continuations {
  /** Total log-probability of each continuation, best first. */
  scores: number[]
  tokens: number[]
  /** Which of the prompt's beams it goes on from. */
  beams: number[]
}

const rulesJson = ({ banned = [], allowed = [], logitBias, repetitionPenalty = 1 }: ChoiceRules) => ({
  banned,
  allowed,
  bias_ids: [...(logitBias?.keys() ?? [])],
  bias: [...(logitBias?.values() ?? [])],
  repetition_penalty: repetitionPenalty,
})

const row = (ids: readonly number[]) => tensor(BigInt64Array.from(ids, BigInt), [ids.length])

/**
 * Text being written after prompts: the cache of keys, values and pictures, extended token by token. It holds the model in memory until
 * it is disposed.
 */
export class TextSession implements Disposable {
  readonly #session: SessionHandle
  /** Rows that are written: prompts times copies. */
  readonly rows: number

  private constructor(session: SessionHandle, rows: number) {
    this.#session = session
    this.rows = rows
  }

  /** Reads left-padded prompts. `copies` makes rows of each; `reserve` makes room for so many tokens to come. */
  static async open(
    model: Module,
    prompts: Record<string, Tensor | undefined>,
    { copies = 1, reserve = 0, ...call }: { copies?: number; reserve?: number } & CallOptions = {},
  ): Promise<TextSession> {
    const session = await model.open('text', prompts, { copies, reserve }, call)
    return new TextSession(session, copies * (prompts['text_ids']?.shape[0] ?? 0))
  }

  /**
   * Appends `ids` (one a row), then picks what comes next, without appending it. A row's draws depend on its seed and its own tokens
   * alone. Throws ERR_VALUE where the rules leave nothing.
   */
  async next(
    ids: readonly number[] | undefined,
    options: ChoiceRules & Sampling & { seeds?: readonly number[]; alternatives?: number } = {},
    call?: CallOptions,
  ): Promise<Next> {
    const { temperature = 0, topK = 0, topP = 1, minP = 0, seeds = [], alternatives = 0, ...rules } = options
    const json = { ...rulesJson(rules), temperature, top_k: topK, top_p: topP, min_p: minP, seeds, alternatives }
    const y = await this.#call('next', { ids }, json, call)
    const [others, probabilities] = [numbers(y, 'alternative_ids'), numbers(y, 'alternative_log_probs')]
    return {
      ids: numbers(y, 'ids'),
      logProbs: numbers(y, 'log_probs'),
      alternatives: Array.from({ length: this.rows }, (_, r) =>
        Array.from({ length: alternatives }, (_, k) => ({
          id: others[r * alternatives + k] as number,
          logProb: probabilities[r * alternatives + k] as number,
        })),
      ),
    }
  }

  /** Goes on from `from` (a row for each row) with `ids`, then gives the best `count` continuations of each prompt's beams. */
  async beam(
    move: { from: readonly number[]; ids: readonly number[] } | undefined,
    totals: readonly number[],
    { beams, count, ...rules }: ChoiceRules & { beams: number; count: number },
    call?: CallOptions,
  ): Promise<Continuations[]> {
    const y = await this.#call(
      'beam',
      { ids: move?.ids, rows: move?.from, totals: tensor(Float32Array.from(totals), [totals.length]) },
      { ...rulesJson(rules), beams, count },
      call,
    )
    const [scores, tokens, from] = [numbers(y, 'scores'), numbers(y, 'tokens'), numbers(y, 'beams')]
    return Array.from({ length: this.rows / beams }, (_, p) => {
      const part = (list: number[]) => list.slice(p * count, (p + 1) * count)
      return { scores: part(scores), tokens: part(tokens), beams: part(from) }
    })
  }

  /** Appends `ids` if there are any; the logits of what comes next, f32 [rows, V]. */
  async logits(ids?: readonly number[], call?: CallOptions): Promise<Float32Array> {
    return new Float32Array(numbers(await this.#call('logits', { ids }, {}, call), 'logits'))
  }

  /** Log-probabilities of continuations, one a row, of any lengths. Nothing is appended. */
  async score(continuations: readonly (readonly number[])[], call?: CallOptions): Promise<number[][]> {
    const longest = Math.max(1, ...continuations.map((ids) => ids.length))
    const flat = (pick: (ids: readonly number[], i: number) => number) =>
      tensor(
        BigInt64Array.from(
          continuations.flatMap((ids) => Array.from({ length: longest }, (_, i) => BigInt(pick(ids, i)))),
        ),
        [continuations.length, longest],
      )
    const inputs = {
      ids: flat((ids, i) => ids[i] ?? 0),
      keep: flat((ids, i) => (i < ids.length ? 1 : 0)),
    }
    const all = numbers(await this.#call('score', inputs, {}, call), 'log_probs')
    return continuations.map((ids, r) => all.slice(r * longest, r * longest + ids.length))
  }

  /** More of the conversation, left-padded as the prompts; earlier pictures stay in sight. */
  async append(prompts: Record<string, Tensor | undefined>, call?: CallOptions): Promise<void> {
    await this.#session.call('append', prompts, {}, call)
  }

  /**
   * The pictures that the rows would show next, one a row, painted from what they hold without reading it again. Nothing is appended:
   * the finished pictures come in by {@link append}. The text may go on, or be disposed, meanwhile.
   */
  picture(start: PictureStart = {}, options: PictureOptions = {}, call?: CallOptions): Promise<PictureSession> {
    return PictureSession.on(this.#session, 'picture', this.rows, { ...start }, options, call)
  }

  /** Tokens and image slots of a row, padding included. */
  async length(call?: CallOptions): Promise<number> {
    return numbers(await this.#call('length', {}, {}, call), 'length')[0] as number
  }

  /** Forgets the tokens after `length`, at most those since the last append. The next call must append something. */
  async truncate(length: number, call?: CallOptions): Promise<void> {
    await this.#call('truncate', {}, { length }, call)
  }

  dispose(): void {
    this.#session.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }

  async #call(
    method: string,
    inputs: Record<string, Tensor | readonly number[] | undefined>,
    options: object,
    call?: CallOptions,
  ): Promise<Record<string, PlainTensor>> {
    const made = Object.fromEntries(
      Object.entries(inputs).map(([name, v]) => [name, Array.isArray(v) ? row(v) : (v as Tensor | undefined)]),
    )
    try {
      return await this.#session.callForData(method, made, options, call)
    } finally {
      for (const t of Object.values(made)) t?.dispose()
    }
  }
}

function numbers(outputs: Record<string, PlainTensor>, name: string): number[] {
  return Array.from((outputs[name] as PlainTensor).data as ArrayLike<number | bigint>, Number)
}
