import type Sharp from 'sharp'

/** sharp takes a tenth of a second to load, so it loads with the first picture. */
export async function loadSharp(): Promise<typeof Sharp> {
  return (await import('sharp')).default
}
