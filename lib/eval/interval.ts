import { DeemError } from '../errors.js'

/** A measured rate with its 95 % interval. */
export interface Rate {
  /** right / total; NaN where nothing was measured. */
  value: number
  low: number
  high: number
  right: number
  total: number
}

// 97.5 % point of the normal distribution.
const z = 1.959963984540054

/** Wilson's score interval: sound for small samples and rates near 0 or 1. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. */
export function wilson(right: number, total: number): Rate {
  if (!(Number.isInteger(right) && Number.isInteger(total) && right >= 0 && right <= total)) {
    throw new DeemError('ERR_VALUE', `[wilson] needs integers 0 <= right <= total but got ${right} of ${total}`)
  }
  if (total === 0) return { value: Number.NaN, low: 0, high: 1, right, total }
  const value = right / total
  const grown = 1 + (z * z) / total
  const center = (value + (z * z) / (2 * total)) / grown
  const half = (z / grown) * Math.sqrt((value * (1 - value)) / total + (z * z) / (4 * total * total))
  const low = right === 0 ? 0 : Math.max(0, center - half)
  const high = right === total ? 1 : Math.min(1, center + half)
  return { value, low, high, right, total }
}
