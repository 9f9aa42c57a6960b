import { DeemError } from '../errors.js'

/** Nouns that can be confused with each other share a group; adversarial questions ask for a neighbour. */
export type NounGroup = 'animal' | 'creature' | 'fruit' | 'food' | 'plant' | 'vehicle' | 'thing'

export interface Noun {
  word: string
  /** Unicode code points as in the picture's file name. */
  code: string
  group: NounGroup
}

// Chosen by eye: the same thing in every vendor's hand, clear at 26 px, and with an up and a down.
// Order is rank: earlier nouns are more frequent. Groups take turns, so every group has frequent and rare ones.
const table: [string, string, NounGroup][] = [
  ['dog', '1f436', 'animal'],
  ['car', '1f697', 'vehicle'],
  ['apple', '1f34e', 'fruit'],
  ['tree', '1f332', 'plant'],
  ['fish', '1f41f', 'creature'],
  ['pizza', '1f355', 'food'],
  ['house', '1f3e0', 'thing'],
  ['cat', '1f431', 'animal'],
  ['train', '1f682', 'vehicle'],
  ['banana', '1f34c', 'fruit'],
  ['rose', '1f339', 'plant'],
  ['owl', '1f989', 'creature'],
  ['carrot', '1f955', 'food'],
  ['umbrella', '2602-fe0f', 'thing'],
  ['pig', '1f437', 'animal'],
  ['boat', '26f5', 'vehicle'],
  ['strawberry', '1f353', 'fruit'],
  ['mushroom', '1f344', 'plant'],
  ['turtle', '1f422', 'creature'],
  ['cupcake', '1f9c1', 'food'],
  ['bell', '1f514', 'thing'],
  ['frog', '1f438', 'animal'],
  ['rocket', '1f680', 'vehicle'],
  ['pineapple', '1f34d', 'fruit'],
  ['cactus', '1f335', 'plant'],
  ['crab', '1f980', 'creature'],
  ['broccoli', '1f966', 'food'],
  ['guitar', '1f3b8', 'thing'],
  ['lion', '1f981', 'animal'],
  ['tractor', '1f69c', 'vehicle'],
  ['watermelon', '1f349', 'fruit'],
  ['sunflower', '1f33b', 'plant'],
  ['whale', '1f433', 'creature'],
  ['eggplant', '1f346', 'food'],
  ['balloon', '1f388', 'thing'],
  ['fox', '1f98a', 'animal'],
  ['taxi', '1f695', 'vehicle'],
  ['bee', '1f41d', 'creature'],
  ['panda', '1f43c', 'animal'],
  ['rabbit', '1f430', 'animal'],
]

/** The things scenes are made of, most frequent first. */
export const nouns: readonly Noun[] = table.map(([word, code, group]) => ({ word, code, group }))

/** How often each noun is drawn, relative: a long tail, the first about 4 times the last. */
export const nounWeights: readonly number[] = nouns.map((_, rank) => (rank + 4) ** -0.6)

export interface NamedColor {
  name: string
  /** 0..1, as stored in pictures. */
  rgb: readonly [number, number, number]
}

/** Backgrounds; any two lie at least 0.25 apart, jitter moves one by at most 0.07. */
export const backgrounds: readonly NamedColor[] = [
  { name: 'red', rgb: [0.85, 0.22, 0.22] },
  { name: 'yellow', rgb: [0.96, 0.86, 0.3] },
  { name: 'green', rgb: [0.3, 0.68, 0.36] },
  { name: 'blue', rgb: [0.24, 0.44, 0.86] },
  { name: 'purple', rgb: [0.56, 0.32, 0.72] },
  { name: 'pink', rgb: [0.97, 0.66, 0.78] },
  { name: 'gray', rgb: [0.52, 0.53, 0.56] },
  { name: 'white', rgb: [0.96, 0.96, 0.96] },
]

/** Reading order. */
export const quadrants = ['top left', 'top right', 'bottom left', 'bottom right'] as const

export const vendors = ['twitter', 'google', 'apple'] as const
/** Whose hand drew the pictures. */
export type Vendor = (typeof vendors)[number]

/** The noun at an index. */
export function noun(index: number): Noun {
  const found = nouns[index]
  if (found === undefined)
    throw new DeemError('ERR_INDEX', `[noun] index must lie in 0..${nouns.length - 1} but got ${index}`)
  return found
}

/** "a cat", "an apple". */
export function withArticle(phrase: string): string {
  return `${/^[aeiou]/.test(phrase) ? 'an' : 'a'} ${phrase}`
}
