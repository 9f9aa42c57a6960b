import { DeemError } from '../errors.js'

/**
 * Random numbers for data: the stream is a function of its key alone (say seed, split, index), so item 7 of a data set is the
 * same whether or not items 0 to 6 were made. Not for cryptography, and not the engine's generator.
 */
export class Random {
  // sfc32 state: three words of chaos and a counter, period at least 2^32 from any state.
  private a = 0
  private b = 0
  private c = 0
  private counter = 1

  /** @param key integers or names; order matters. */
  constructor(...key: readonly (number | string)[]) {
    let h1 = 0x9e3779b9
    let h2 = 0x243f6a88
    const absorb = (word: number): void => {
      h1 = mix(h1 ^ word)
      h2 = mix((h2 + Math.imul(word, 0x85ebca6b)) ^ h1)
    }
    for (const part of key) {
      if (typeof part === 'string') {
        absorb(part.length ^ 0x5bd1e995)
        for (let i = 0; i < part.length; i++) absorb(part.charCodeAt(i))
      } else {
        if (!Number.isSafeInteger(part))
          throw new DeemError('ERR_VALUE', `[random] keys must be integers or names but got ${part}`)
        absorb(part | 0)
        absorb(Math.floor(part / 2 ** 32) | 0)
      }
    }
    this.a = h1
    this.b = h2
    this.c = mix(h1 + h2)
    for (let i = 0; i < 8; i++) this.uint32()
  }

  /** An integer in 0 .. 2^32 - 1. */
  uint32(): number {
    const sum = (((this.a + this.b) | 0) + this.counter) | 0
    this.counter = (this.counter + 1) | 0
    this.a = this.b ^ (this.b >>> 9)
    this.b = (this.c + (this.c << 3)) | 0
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) | 0
    return sum >>> 0
  }

  /** Uniform in [0, 1), 32 bits. */
  uniform(): number {
    return this.uint32() / 2 ** 32
  }

  /** Uniform in [low, high). */
  between(low: number, high: number): number {
    return low + (high - low) * this.uniform()
  }

  /** A uniform integer in 0 .. n - 1. */
  int(n: number): number {
    if (!(n >= 1 && n <= 2 ** 32)) throw new DeemError('ERR_VALUE', `[random] int needs 1 <= n <= 2^32 but got ${n}`)
    return Math.floor(this.uniform() * n)
  }

  bool(probability = 0.5): boolean {
    return this.uniform() < probability
  }

  pick<T>(items: readonly T[]): T {
    return items[this.int(items.length)] as T
  }

  /** An index drawn with the given weights (not negative, not all zero). */
  weighted(weights: readonly number[]): number {
    let left = this.uniform() * weights.reduce((a, b) => a + b, 0)
    let last = 0
    for (let i = 0; i < weights.length; i++) {
      const weight = weights[i] as number
      if (weight <= 0) continue
      last = i
      left -= weight
      if (left < 0) return i
    }
    return last
  }

  /** Shuffles in place. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.int(i + 1)
      const kept = items[i] as T
      items[i] = items[j] as T
      items[j] = kept
    }
    return items
  }
}

/** A bijection of 32-bit words whose every output bit depends on every input bit (xor-shift and multiply, twice). */
function mix(word: number): number {
  let x = word | 0
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad)
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97)
  return (x ^ (x >>> 15)) | 0
}
