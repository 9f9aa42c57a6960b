import { backgrounds, noun, nouns, quadrants, withArticle } from './nouns.js'
import type { Random } from './random.js'
import type { Scene } from './scenes.js'

/** Corner words of the slot caption; a crop's object is in the middle. */
export const cornerWords = ['topleft', 'topright', 'bottomleft', 'bottomright'] as const
const middle = 'middle'
/** Words of every {@link slotCaption}. */
export const slotCaptionWords = 13

/** Everything in the scene, in reading order: "a red background, a cat in the top left, an upside down dog in the bottom right." */
export function denseCaption(scene: Scene): string {
  const parts = scene.objects.map((object) => {
    const what = `${object.upside ? 'upside down ' : ''}${noun(object.noun).word}`
    return `${withArticle(what)} in the ${quadrants[object.quadrant]}`
  })
  return `${[`a ${colorName(scene)} background`, ...parts].join(', ')}.`
}

/** What the web would say: "a photo of a cat and a dog." in any order, each noun left out with probability 0.15 (never all). */
export function sparseCaption(scene: Scene, random: Random): string {
  const all = random.shuffle(scene.objects.map((object) => withArticle(noun(object.noun).word)))
  const said = all.filter(() => !random.bool(0.15))
  return `a photo of ${joined(said.length > 0 ? said : all.slice(0, 1))}.`
}

/**
 * The denoiser's form, always {@link slotCaptionWords} words: background, then four times corner, `upright` / `upside` / `none`,
 * noun / `none`.
 */
export function slotCaption(scene: Scene): string {
  const slots = cornerWords.map((corner, quadrant) => {
    const object = scene.objects.find((candidate) => candidate.quadrant === quadrant)
    return object === undefined ? `${corner} none none` : `${corner} ${stateOf(object)} ${noun(object.noun).word}`
  })
  return [colorName(scene), ...slots].join(' ')
}

/** The slot form of a one-object crop: the object in the first slot, every corner word `middle`. */
export function cropSlotCaption(crop: Scene): string {
  const object = crop.objects[0]
  const first = object === undefined ? 'none none' : `${stateOf(object)} ${noun(object.noun).word}`
  return [colorName(crop), `${middle} ${first}`, ...Array(3).fill(`${middle} none none`)].join(' ')
}

/** A crop in words: "an upside down cat on a red background." */
export function cropCaption(crop: Scene): string {
  const object = crop.objects[0]
  const what =
    object === undefined ? 'nothing' : withArticle(`${object.upside ? 'upside down ' : ''}${noun(object.noun).word}`)
  return `${what} on a ${colorName(crop)} background.`
}

/** What a dense caption claims. */
export interface CaptionFacts {
  /** Undefined where no named colour comes before "background". */
  background: number | undefined
  objects: { noun: number; quadrant: number | undefined; upside: boolean }[]
}

/** Reads a caption back, as far as it keeps to the dense or the sparse form. */
export function readCaption(text: string): CaptionFacts {
  const facts: CaptionFacts = { background: undefined, objects: [] }
  for (const part of text.toLowerCase().split(/[,.]| and /)) {
    const words = part.split(/\s+/)
    const color = backgrounds.findIndex(({ name }) => part.includes(`${name} background`))
    if (color >= 0) facts.background ??= color
    const index = nouns.findIndex(({ word }) => words.includes(word))
    if (index < 0) continue
    const quadrant = quadrants.findIndex((place) => part.includes(place))
    facts.objects.push({
      noun: index,
      quadrant: quadrant < 0 ? undefined : quadrant,
      upside: part.includes('upside down'),
    })
  }
  return facts
}

/** A caption against the scene, over the caption's and the scene's objects. */
export interface CaptionScore {
  background: boolean
  /** Nouns the caption names that are there, nouns it names, nouns there. */
  found: number
  said: number
  there: number
  /** Of the found ones: right quadrant, right way up. */
  placed: number
  turned: number
}

export function scoreCaption(text: string, scene: Scene): CaptionScore {
  const facts = readCaption(text)
  const said = new Map(facts.objects.map((object) => [object.noun, object]))
  const score = {
    background: facts.background === scene.background,
    found: 0,
    said: said.size,
    there: scene.objects.length,
    placed: 0,
    turned: 0,
  }
  for (const object of scene.objects) {
    const claim = said.get(object.noun)
    if (claim === undefined) continue
    score.found++
    if (claim.quadrant === object.quadrant) score.placed++
    if (claim.upside === object.upside) score.turned++
  }
  return score
}

/** Every word captions can hold, for the tokenizer. */
export function captionTexts(): string[] {
  return [
    ...nouns.map(({ word }) => `${withArticle(word)} in the photo of upside down, and.`),
    ...backgrounds.map(({ name }) => `a ${name} background, nothing on`),
    ...quadrants,
    [...cornerWords, middle, 'upright upside none'].join(' '),
  ]
}

const stateOf = (object: { upside: boolean }): string => (object.upside ? 'upside' : 'upright')

function colorName(scene: Scene): string {
  return (backgrounds[scene.background] as { name: string }).name
}

function joined(list: readonly string[]): string {
  return list.length < 2 ? list.join('') : `${list.slice(0, -1).join(', ')} and ${list[list.length - 1]}`
}
