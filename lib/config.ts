import { createRequire } from 'node:module'
import type { z } from 'zod'
import { DeemError } from './errors.js'

/** zod takes longer to load than everything else here, and most programs check nothing by it: it loads with the first schema. */
type Zod = typeof z
let loaded: Zod | undefined
const zod = (): Zod => {
  loaded ??= createRequire(import.meta.url)('zod').z as Zod
  return loaded
}

/** A schema, made at its first use. */
export function lazySchema<T extends z.ZodType>(make: (z: Zod) => T): () => T {
  let schema: T | undefined
  return () => {
    schema ??= make(zod())
    return schema
  }
}

/** Checks a value against a strict schema; throws ERR_CONFIG that lists every problem and, for unknown keys, the nearest known one. */
export function parseConfig<T extends z.ZodType>(of: () => T, value: unknown, what: string): z.output<T> {
  const schema = of()
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const problems = result.error.issues.flatMap((issue) => {
    const path = [what, ...issue.path].join('.')
    if (issue.code !== 'unrecognized_keys') return [`${path}: ${issue.message}`]
    const known = keysAt(schema, issue.path)
    return issue.keys.map((key) => {
      const near = nearest(key, known)
      return `${path}.${key} is unknown${near ? `; the nearest known key is '${near}'` : ''}`
    })
  })
  throw new DeemError('ERR_CONFIG', problems.join('\n'))
}

function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  let at: unknown = schema
  const z = zod()
  const open = (s: unknown): unknown => {
    let inner = s
    while (inner instanceof z.ZodOptional || inner instanceof z.ZodDefault || inner instanceof z.ZodNullable)
      inner = inner.unwrap()
    return inner
  }
  for (const key of path) {
    at = open(at)
    if (at instanceof z.ZodObject) at = at.shape[String(key)]
    else if (at instanceof z.ZodArray) at = at.element
    else return []
  }
  at = open(at)
  return at instanceof z.ZodObject ? Object.keys(at.shape) : []
}

/** The entry of `known` with the least edit distance. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  const distance = (a: string, b: string): number => {
    let row = Array.from({ length: b.length + 1 }, (_, j) => j)
    for (let i = 1; i <= a.length; i++) {
      const next = [i]
      for (let j = 1; j <= b.length; j++)
        next.push(
          Math.min(
            (row[j] as number) + 1,
            (next[j - 1] as number) + 1,
            (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1),
          ),
        )
      row = next
    }
    return row[b.length] as number
  }
  let best: string | undefined
  let least = Number.POSITIVE_INFINITY
  for (const k of known) {
    const d = distance(name, k)
    if (d < least) {
      least = d
      best = k
    }
  }
  return best
}
