import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { loadSharp } from '../image/sharp.js'
import { nouns, type Vendor, vendors } from './nouns.js'

/** Sides a sprite is drawn at, in pixels. */
export const spriteSizes = [26, 27, 28, 29, 30] as const

/** Pictures of every noun at every size, decoded once: RGBA 0..1, colours already multiplied by alpha. */
export class Sprites {
  readonly vendors: readonly Vendor[]
  readonly #pixels: ReadonlyMap<string, Float32Array>

  private constructor(names: readonly Vendor[], pixels: ReadonlyMap<string, Float32Array>) {
    this.vendors = names
    this.#pixels = pixels
  }

  /** Reads the vendors' npm packages (emoji-datasource-NAME). */
  static async load(names: readonly Vendor[] = vendors): Promise<Sprites> {
    const pixels = new Map<string, Float32Array>()
    for (const vendor of names) {
      const folder = vendorFolder(vendor)
      await Promise.all(
        nouns.map(async (noun, index) => {
          const file = join(folder, `${noun.code}.png`)
          for (const size of spriteSizes) pixels.set(key(vendor, index, size), await readSprite(file, size))
        }),
      )
    }
    return new Sprites(names, pixels)
  }

  get(vendor: Vendor, noun: number, size: number): Float32Array {
    const found = this.#pixels.get(key(vendor, noun, size))
    if (found === undefined) {
      throw new DeemError(
        'ERR_INDEX',
        `[sprites] no picture of noun ${noun} by ${vendor} at ${size} px; loaded: ${this.vendors}`,
      )
    }
    return found
  }
}

const key = (vendor: Vendor, noun: number, size: number): string => `${vendor} ${noun} ${size}`

function vendorFolder(vendor: Vendor): string {
  const name = `emoji-datasource-${vendor}`
  try {
    const root = dirname(createRequire(import.meta.url).resolve(`${name}/package.json`))
    const folder = join(root, 'img', vendor, '64')
    if (existsSync(folder)) return folder
  } catch {
    // Said below, with the command that mends it.
  }
  throw new DeemError('ERR_IO', `[sprites] the pictures of ${vendor} are not installed: npm i -D ${name}`)
}

async function readSprite(file: string, size: number): Promise<Float32Array> {
  const sharp = await loadSharp()
  let bytes: Buffer
  try {
    // libvips multiplies by alpha before it resizes and divides after, so transparent pixels bleed no colour.
    const clear = { r: 0, g: 0, b: 0, alpha: 0 }
    const picture = sharp(file).ensureAlpha().resize(size, size, { kernel: 'cubic', fit: 'contain', background: clear })
    bytes = await picture.toColourspace('srgb').raw().toBuffer()
  } catch (cause) {
    throw causedBy(cause, 'ERR_FORMAT', `[sprites] cannot read ${file}`)
  }
  const out = new Float32Array(size * size * 4)
  for (let i = 0; i < out.length; i += 4) {
    const alpha = (bytes[i + 3] as number) / 255
    for (let c = 0; c < 3; c++) out[i + c] = ((bytes[i + c] as number) / 255) * alpha
    out[i + 3] = alpha
  }
  return out
}
