import { DeemError } from '../errors.js'
import { type HostTensor, hostTensor } from '../host-tensor.js'
import { backgrounds, nouns, nounWeights, quadrants, type Vendor } from './nouns.js'
import { Random } from './random.js'
import { type Sprites, spriteSizes } from './sprites.js'

/** Side of a scene, in pixels. */
export const sceneSide = 64
/** Side of a one-object crop, in pixels. */
export const cropSide = 32

export interface SceneObject {
  /** Index into {@link nouns}. */
  noun: number
  /** Index into {@link quadrants}; 0 in a crop. */
  quadrant: number
  /** Turned by 180 degrees. */
  upside: boolean
  /** Side and left top corner, in pixels. */
  size: number
  x: number
  y: number
}

/** Everything a picture shows; plain data, so it can be compared, changed and stored. */
export interface Scene {
  vendor: Vendor
  /** Index into {@link backgrounds}. */
  background: number
  /** The background as painted: the named colour plus jitter. */
  color: [number, number, number]
  /** Different nouns in different quadrants, in reading order. */
  objects: SceneObject[]
}

/** Two splits never share a random stream. */
export type Split = 'train' | 'validation' | 'test'

/** Which scenes: the one at `index` is a function of these values alone. */
export interface SceneSource {
  seed: number
  split: Split
  vendors: readonly Vendor[]
}

const upsideRate = 0.3
const colorJitter = 0.04

/** The random stream of one item of a data set; `purpose` separates uses of the same index. */
export function stream(source: SceneSource, purpose: string, index: number): Random {
  if (source.vendors.length === 0) throw new DeemError('ERR_VALUE', '[scenes] vendors must not be empty')
  return new Random(source.seed, source.split, purpose, index)
}

/** The scene at `index`. */
export function sceneAt(source: SceneSource, index: number): Scene {
  return drawScene(stream(source, 'scene', index), source.vendors)
}

/** The crop at `index`: one object on a background, for {@link renderCrops}. */
export function cropAt(source: SceneSource, index: number): Scene {
  const random = stream(source, 'crop', index)
  return {
    vendor: random.pick(source.vendors),
    ...drawBackground(random),
    objects: [drawObject(random, random.weighted(nounWeights), 0)],
  }
}

/** A scene of `count` objects (1 to 3 at random if left out). */
export function drawScene(random: Random, from: readonly Vendor[], count: number = 1 + random.int(3)): Scene {
  const vendor = random.pick(from)
  const back = drawBackground(random)
  const places = random.shuffle([0, 1, 2, 3]).slice(0, count).sort()
  const weights = [...nounWeights]
  const objects = places.map((quadrant) => {
    const noun = random.weighted(weights)
    weights[noun] = 0
    return drawObject(random, noun, quadrant)
  })
  return { vendor, ...back, objects }
}

/** A background of one name (any if left out) with its jitter. */
export function drawBackground(
  random: Random,
  background: number = random.int(backgrounds.length),
): Pick<Scene, 'background' | 'color'> {
  const named = backgrounds[background]
  if (named === undefined) throw new DeemError('ERR_INDEX', `[scenes] no background ${background}`)
  const shifted = named.rgb.map((value) => Math.min(1, Math.max(0, value + random.between(-colorJitter, colorJitter))))
  return { background, color: shifted as [number, number, number] }
}

/** An object somewhere in its quadrant. */
export function drawObject(random: Random, noun: number, quadrant: number): SceneObject {
  const upside = random.bool(upsideRate)
  const size = random.pick(spriteSizes)
  const { x, y } = placeIn(quadrant, random.int(cropSide - size + 1), random.int(cropSide - size + 1))
  return { noun, quadrant, upside, size, x, y }
}

/** The same object, same offsets, in another quadrant. */
export function moved(object: SceneObject, quadrant: number): SceneObject {
  const [x, y] = [object.x % cropSide, object.y % cropSide]
  return { ...object, quadrant, ...placeIn(quadrant, x, y) }
}

function placeIn(quadrant: number, x: number, y: number): { x: number; y: number } {
  if (!(quadrant in quadrants)) throw new DeemError('ERR_INDEX', `[scenes] no quadrant ${quadrant}`)
  return { x: (quadrant % 2) * cropSide + x, y: Math.floor(quadrant / 2) * cropSide + y }
}

/** Paints scenes: `[N, 64, 64, 3]` in 0..1. */
export function renderScenes(scenes: readonly Scene[], sprites: Sprites): HostTensor<'f32'> {
  return render(scenes, sprites, sceneSide)
}

/** Paints crops: `[N, 32, 32, 3]` in 0..1. */
export function renderCrops(crops: readonly Scene[], sprites: Sprites): HostTensor<'f32'> {
  return render(crops, sprites, cropSide)
}

function render(scenes: readonly Scene[], sprites: Sprites, side: number): HostTensor<'f32'> {
  const per = side * side * 3
  const out = new Float32Array(scenes.length * per)
  scenes.forEach((scene, i) => {
    fill(out, i * per, per, scene.color)
    for (const object of scene.objects) {
      if (object.noun >= nouns.length || object.x + object.size > side || object.y + object.size > side) {
        throw new DeemError(
          'ERR_VALUE',
          `[scenes] object ${JSON.stringify(object)} does not fit a picture of ${side} px`,
        )
      }
      blend(out, i * per, side, object, sprites.get(scene.vendor, object.noun, object.size))
    }
  })
  return hostTensor(out, [scenes.length, side, side, 3])
}

function fill(out: Float32Array, start: number, length: number, color: readonly number[]): void {
  out.set(color, start)
  for (let done = 3; done < length; done *= 2) {
    out.copyWithin(start + done, start, start + Math.min(done, length - done))
  }
}

// out = sprite + out * (1 - alpha); the sprite's colours carry alpha already. Turned by 180 degrees = read backwards.
function blend(out: Float32Array, start: number, side: number, object: SceneObject, sprite: Float32Array): void {
  const { size, x, y, upside } = object
  let from = upside ? sprite.length - 4 : 0
  const step = upside ? -4 : 4
  for (let row = 0; row < size; row++) {
    let to = start + ((y + row) * side + x) * 3
    for (let column = 0; column < size; column++) {
      const rest = 1 - (sprite[from + 3] as number)
      out[to] = (sprite[from] as number) + (out[to] as number) * rest
      out[to + 1] = (sprite[from + 1] as number) + (out[to + 1] as number) * rest
      out[to + 2] = (sprite[from + 2] as number) + (out[to + 2] as number) * rest
      to += 3
      from += step
    }
  }
}
