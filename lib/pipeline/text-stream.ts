/** Ids to text while they come: nothing is shown that a later id could change or a stop string take back. */
import type { Tokenizer } from '../tokenizer/index.js'

/** A byte of a character that has no token of its own, as byte-fallback vocabularies write it. */
const byteToken = /^<0x[0-9A-F]{2}>$/

export class TextStream {
  readonly #tokenizer: Tokenizer
  readonly #stops: readonly string[]
  readonly #ids: number[] = []
  #shown = ''
  #stopped = false

  constructor(tokenizer: Tokenizer, stops: readonly string[] = []) {
    this.#tokenizer = tokenizer
    this.#stops = stops.filter((s) => s !== '')
  }

  /** Everything shown so far. */
  get text(): string {
    return this.#shown
  }
  /** A stop string was met; it and what follows are left out. */
  get stopped(): boolean {
    return this.#stopped
  }

  /** Takes an id and gives the text that is now certain. */
  push(id: number): string {
    if (this.#stopped) return ''
    this.#ids.push(id)
    return this.#show(false)
  }

  /** No more ids come: gives what was held back. */
  end(): string {
    return this.#stopped ? '' : this.#show(true)
  }

  #show(all: boolean): string {
    // A run of bytes is text or not as a whole: one more byte can change what the others are.
    let settled = this.#ids.length
    if (!all)
      while (settled > 0 && byteToken.test(this.#tokenizer.token(this.#ids[settled - 1] as number) ?? '')) settled--
    const text = this.#tokenizer.decode(this.#ids.slice(0, settled))
    const found = this.#stops.map((s) => text.indexOf(s)).filter((at) => at >= 0)
    if (found.length > 0) {
      this.#stopped = true
      return this.#upTo(text, Math.min(...found))
    }
    let end = text.length
    // The beginning of a stop string may be the whole of it.
    if (!all)
      for (const stop of this.#stops)
        for (let n = Math.min(stop.length - 1, text.length); n > 0; n--)
          if (text.endsWith(stop.slice(0, n))) {
            end = Math.min(end, text.length - n)
            break
          }
    return this.#upTo(text, end)
  }

  #upTo(text: string, end: number): string {
    if (end <= this.#shown.length) return ''
    const more = text.slice(this.#shown.length, end)
    this.#shown = text.slice(0, end)
    return more
  }
}
