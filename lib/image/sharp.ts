import { createRequire } from 'node:module'
import type Sharp from 'sharp'

/**
 * sharp takes a tenth of a second to load, so it loads with the first picture. Required, not imported: Node would read each of the fifty
 * files behind it a second time, for the names they export.
 */
export async function loadSharp(): Promise<typeof Sharp> {
  return createRequire(import.meta.url)('sharp') as typeof Sharp
}
