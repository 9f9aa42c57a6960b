import { DeemError } from '../errors.js'
import type { DecodeOptions } from '../generate/decode.js'
import type { Tokenizer } from '../tokenizer/index.js'
import type { PictureFit } from './prompt.js'
import { TextStream } from './text-stream.js'

export interface TextOptions extends Omit<DecodeOptions, 'maxNewTokens' | 'allowed' | 'logitBias'>, PictureFit {
  /** Default 64. */
  maxTokens?: number
  /** Strings that end the text; they are not part of it. */
  stop?: readonly string[]
  /** The text is one of these. */
  choices?: readonly string[]
  /** Added to the scores of tokens, by id or by the token itself. */
  logitBias?: Readonly<Record<string, number>> | ReadonlyMap<number, number>
}

/** stop: an end token or a stop string; image: the model wants to show a picture; length: the limit. */
export type FinishReason = 'stop' | 'image' | 'length'

export interface TextResult {
  text: string
  ids: number[]
  /** Log-probability of each id. */
  logProbs: number[]
  /** The likeliest tokens at each place, where `alternatives` asked for them. */
  alternatives: { token: string; logProb: number }[][]
  finishReason: FinishReason
}

/** One text as it is written. */
export class Writer {
  readonly bias: ReadonlyMap<number, number> | undefined
  readonly #tokenizer: Tokenizer
  readonly #stream: TextStream
  readonly #choices: readonly (readonly number[])[]
  readonly #ids: number[] = []
  readonly #logProbs: number[] = []
  readonly #alternatives: { id: number; logProb: number }[][] = []
  #reason: FinishReason = 'length'
  #ended = false

  constructor(tokenizer: Tokenizer, options: TextOptions) {
    this.#tokenizer = tokenizer
    this.#stream = new TextStream(tokenizer, options.stop)
    this.bias = biasById(tokenizer, options.logitBias)
    this.#choices = (options.choices ?? []).map((c) => [...tokenizer.encode(c), tokenizer.ids.eos])
    if (options.choices?.length === 0) throw new DeemError('ERR_VALUE', 'there is nothing to choose from')
  }

  get done(): boolean {
    return this.#ended
  }

  /** What may follow ids so that the text stays one of the choices. */
  choicesAfter(ids: readonly number[]): number[] {
    return [
      ...new Set(this.#choices.filter((c) => ids.every((id, i) => c[i] === id)).map((c) => c[ids.length] as number)),
    ]
  }

  /** Takes the token of row `r`; gives the text that is now certain. */
  take(
    step: { ids: number[]; logProbs: number[]; alternatives: { id: number; logProb: number }[][] },
    r: number,
  ): string {
    if (this.#ended) return ''
    const id = step.ids[r] as number
    this.#ids.push(id)
    this.#logProbs.push(step.logProbs[r] as number)
    const others = step.alternatives[r] ?? []
    if (others.length > 0) this.#alternatives.push(others)
    const { eos, soi } = this.#tokenizer.ids
    if (id === eos || id === soi) {
      this.#ended = true
      this.#reason = id === eos ? 'stop' : 'image'
      return this.#stream.end()
    }
    const more = this.#stream.push(id)
    if (this.#stream.stopped) {
      this.#ended = true
      this.#reason = 'stop'
    }
    return more
  }

  /** No more tokens come: what was held back. */
  end(): string {
    return this.#ended ? '' : this.#stream.end()
  }

  result(tokenizer: Tokenizer): TextResult {
    this.end()
    return {
      text: this.#stream.text,
      ids: this.#ids,
      logProbs: this.#logProbs,
      alternatives: this.#alternatives.map((list) =>
        list.map(({ id, logProb }) => ({ token: tokenizer.token(id) ?? '', logProb })),
      ),
      finishReason: this.#reason,
    }
  }
}

function biasById(tokenizer: Tokenizer, bias: TextOptions['logitBias']): ReadonlyMap<number, number> | undefined {
  if (bias === undefined || bias instanceof Map) return bias as ReadonlyMap<number, number> | undefined
  return new Map(
    Object.entries(bias).map(([token, value]) => {
      const id = tokenizer.id(token)
      if (id === undefined) throw new DeemError('ERR_VALUE', `logitBias names '${token}', which is no token`)
      return [id, value]
    }),
  )
}

/** @internal Options of a text as those of decoding; `writers` know what their rows may say. */
export function decoding(options: TextOptions, ...writers: readonly Writer[]): DecodeOptions {
  const { maxTokens = 64, stop: _stop, choices, logitBias: _bias, ...rest } = options
  const bias = writers[0]?.bias
  return {
    ...rest,
    maxNewTokens: maxTokens,
    ...(bias && { logitBias: bias }),
    ...(choices && { allowed: (r: number, ids: readonly number[]) => writers[r]?.choicesAfter(ids) }),
  }
}
