import { DeemError } from './errors.js'

/** Things a scope can own. */
interface Owned {
  dispose(): void
}

let active: Set<Owned> | null = null

/** @internal Called for every new tensor: inside {@link tidy} it belongs to the tidy. */
export function track(item: Owned): void {
  active?.add(item)
}

/**
 * Runs `fn` and disposes every tensor made in it but those it returns (alone, in an array or as values of an object).
 * Synchronous only: for async code use a {@link Scope}.
 *
 * @example
 * ```ts
 * import { ops, tensor, tidy } from 'deem'
 *
 * const x = tensor([[1, 2], [3, 4]])
 * const y = tidy(() => ops.mulScalar(ops.add(x, x), 0.5)) // the sum is gone, y stays
 * y.dispose()
 * ```
 */
export function tidy<T>(fn: () => T): T {
  const outer = active
  const mine = new Set<Owned>()
  active = mine
  try {
    const result = fn()
    if (result instanceof Promise)
      throw new DeemError('ERR_VALUE', '[tidy] needs a synchronous function; use a Scope in async code')
    for (const kept of ownedIn(result)) {
      mine.delete(kept)
      outer?.add(kept)
    }
    return result
  } finally {
    active = outer
    for (const item of mine) item.dispose()
  }
}

function ownedIn(value: unknown): Owned[] {
  if (typeof value !== 'object' || value === null) return []
  if ('dispose' in value && typeof value.dispose === 'function') return [value as Owned]
  return Object.values(value).flatMap(ownedIn)
}

/**
 * Owns what it is given until its end.
 *
 * @example
 * ```ts
 * import { Scope, tensor, type Vae } from 'deem'
 *
 * async function roundTrip(vae: Vae, pixels: Float32Array): Promise<Float32Array> {
 *   using scope = new Scope()
 *   const image = scope.keep(tensor(pixels, [1, 64, 64, 3]))
 *   const { mean } = scope.keep(await vae.encode({ image }, { grad: false }))
 *   return scope.keep(await vae.decode(mean, { grad: false })).toFloat32()
 * } // everything kept is disposed here, also where something threw
 * ```
 */
export class Scope implements Disposable {
  readonly #items = new Set<Owned>()

  /** Takes ownership of one thing, or of all values of an array or object, and returns it. */
  keep<T>(value: T): T {
    for (const item of ownedIn(value)) this.#items.add(item)
    return value
  }
  /** Gives ownership back to the caller. */
  release<T>(value: T): T {
    for (const item of ownedIn(value)) this.#items.delete(item)
    return value
  }
  [Symbol.dispose](): void {
    for (const item of this.#items) item.dispose()
    this.#items.clear()
  }
}
