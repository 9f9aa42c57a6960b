import { DeemError } from '../errors.js'
import { backgrounds, noun, nouns, nounWeights, quadrants, withArticle } from './nouns.js'
import type { Random } from './random.js'
import { drawScene, moved, type Scene, type SceneObject, type SceneSource, stream } from './scenes.js'

export const questionKinds = ['existence', 'count', 'background', 'where', 'orientation', 'relation'] as const
export type QuestionKind = (typeof questionKinds)[number]

/** Where the absent nouns of existence questions come from: any, frequent ones, or neighbours of what is there. */
export const negativeKinds = ['random', 'popular', 'adversarial'] as const
export type NegativeKind = (typeof negativeKinds)[number]

export interface Question {
  kind: QuestionKind
  text: string
  answer: string
  /** Existence only: the setting it belongs to, for yes and no alike. */
  negatives?: NegativeKind
}

export interface SceneQuestion {
  scene: Scene
  question: Question
}

/** How {@link ask} is to choose. */
export interface AskOptions {
  /** Yes or no, for the kinds so answered; drawn if left out. */
  want?: boolean
  /** For existence; drawn if left out. */
  negatives?: NegativeKind
}

const numbers = ['none', 'one', 'two', 'three', 'four']
/** Absent nouns of this many most frequent ones count as popular. */
const popular = 10

/** A question of one kind about a scene; undefined where the scene has none (say, a relation in a scene of one object). */
export function ask(kind: QuestionKind, scene: Scene, random: Random, options: AskOptions = {}): Question | undefined {
  const want = options.want ?? random.bool()
  switch (kind) {
    case 'existence': {
      const negatives = options.negatives ?? random.pick(negativeKinds)
      const about = want ? random.pick(scene.objects).noun : absentNoun(scene, random, negatives)
      return { kind, text: existenceText(about), answer: yesNo(want), negatives }
    }
    case 'count':
      return { kind, text: countText, answer: countAnswer(scene) }
    case 'background':
      return { kind, text: backgroundText, answer: backgroundAnswer(scene) }
    case 'where': {
      const object = random.pick(scene.objects)
      return { kind, text: whereText(object.noun), answer: whereAnswer(object) }
    }
    case 'orientation': {
      const able = scene.objects.filter((object) => object.upside === want)
      if (able.length === 0) return undefined
      return { kind, text: orientationText(random.pick(able).noun), answer: yesNo(want) }
    }
    case 'relation': {
      if (scene.objects.length < 2) return undefined
      const [a, b] = random.shuffle([...scene.objects]) as [SceneObject, SceneObject]
      const able = relations.filter(({ holds }) => (want ? holds(a, b) : holds(b, a)))
      return { kind, text: relationText(random.pick(able).name, a.noun, b.noun), answer: yesNo(want) }
    }
  }
}

/**
 * Question `index` of one kind, with a scene of its own. Yes and no alternate with the index, and the three settings of
 * existence questions follow each other, so any 6 (2, for a given setting) in a row are balanced.
 */
export function questionAt(
  source: SceneSource,
  kind: QuestionKind,
  index: number,
  negatives?: NegativeKind,
): SceneQuestion {
  const random = stream(source, `question ${kind} ${negatives ?? ''}`, index)
  const options: AskOptions = {
    want: index % 2 === 0,
    negatives: negatives ?? (negativeKinds[Math.floor(index / 2) % 3] as NegativeKind),
  }
  for (let attempt = 0; attempt < 1000; attempt++) {
    const scene = drawScene(random, source.vendors)
    const question = ask(kind, scene, random, options)
    if (question !== undefined) return { scene, question }
  }
  throw new DeemError('ERR_VALUE', `[questions] no scene for ${kind} question ${index}`)
}

/** What the two scenes of a pair differ in, and nothing else. */
export const pairKinds = ['background', 'noun', 'where', 'orientation', 'count', 'relation'] as const
export type PairKind = (typeof pairKinds)[number]

/** Two scenes, one question, different answers. A model is right only if it answers both. */
export interface ScenePair {
  kind: PairKind
  first: SceneQuestion
  second: SceneQuestion
}

export function pairAt(source: SceneSource, kind: PairKind, index: number): ScenePair {
  const random = stream(source, `pair ${kind}`, index)
  const scene = drawScene(random, source.vendors, kind === 'relation' ? 2 + random.int(2) : undefined)
  const { other, ask: both } = differ(kind, scene, random)
  const pair = random.shuffle([scene, other]).map((one) => ({ scene: one, question: both(one) }))
  return { kind, first: pair[0] as SceneQuestion, second: pair[1] as SceneQuestion }
}

function differ(kind: PairKind, scene: Scene, random: Random): { other: Scene; ask: (scene: Scene) => Question } {
  const at = random.int(scene.objects.length)
  const object = scene.objects[at] as SceneObject
  const replaced = (...by: SceneObject[]): Scene =>
    withObjects(scene, [...scene.objects.slice(0, at), ...by, ...scene.objects.slice(at + 1)])
  switch (kind) {
    case 'background': {
      const background = (scene.background + 1 + random.int(backgrounds.length - 1)) % backgrounds.length
      const shift = (color: number, c: number): number => {
        const [from, to] = [backgrounds[scene.background], backgrounds[background]]
        return Math.min(1, Math.max(0, color + (to?.rgb[c] ?? 0) - (from?.rgb[c] ?? 0)))
      }
      const color = scene.color.map(shift) as [number, number, number]
      return {
        other: { ...scene, background, color },
        ask: (one) => ({ kind, text: backgroundText, answer: backgroundAnswer(one) }),
      }
    }
    case 'noun': {
      const other = replaced({ ...object, noun: absentNoun(scene, random, random.pick(negativeKinds)) })
      const text = existenceText(object.noun)
      const there = (one: Scene): boolean => one.objects.some((candidate) => candidate.noun === object.noun)
      return { other, ask: (one) => ({ kind: 'existence', text, answer: yesNo(there(one)) }) }
    }
    case 'where': {
      const free = [0, 1, 2, 3].filter((place) => scene.objects.every(({ quadrant }) => quadrant !== place))
      const other = replaced(moved(object, random.pick(free)))
      const text = whereText(object.noun)
      return { other, ask: (one) => ({ kind, text, answer: whereAnswer(find(one, object.noun)) }) }
    }
    case 'orientation': {
      const other = replaced({ ...object, upside: !object.upside })
      const text = orientationText(object.noun)
      return { other, ask: (one) => ({ kind, text, answer: yesNo(find(one, object.noun).upside) }) }
    }
    case 'count': {
      const grown = scene.objects.length === 1 || (scene.objects.length === 2 && random.bool())
      const other = grown ? withObjects(scene, [...scene.objects, extra(scene, random)]) : replaced()
      return { other, ask: (one) => ({ kind, text: countText, answer: countAnswer(one) }) }
    }
    case 'relation': {
      const partner = random.pick(scene.objects.filter((candidate) => candidate !== object))
      const swap = (one: SceneObject): SceneObject =>
        one === object ? moved(object, partner.quadrant) : one === partner ? moved(partner, object.quadrant) : one
      const relation = random.pick(relations.filter(({ holds }) => holds(object, partner) || holds(partner, object)))
      const text = relationText(relation.name, object.noun, partner.noun)
      const answer = (one: Scene): string => yesNo(relation.holds(find(one, object.noun), find(one, partner.noun)))
      return { other: withObjects(scene, scene.objects.map(swap)), ask: (one) => ({ kind, text, answer: answer(one) }) }
    }
  }
}

/** Every word questions and answers can hold, for the tokenizer. */
export function questionTexts(): string[] {
  const two = [0, 1] as const
  return [
    ...nouns.map((_, index) => existenceText(index)),
    ...relations.map(({ name }) => relationText(name, ...two)),
    ...[countText, backgroundText, whereText(0), orientationText(0), 'yes no', numbers.join(' ')],
    ...backgrounds.map(({ name }) => name),
    ...quadrants,
  ]
}

const countText = 'how many things are there?'
const backgroundText = 'what color is the background?'
const existenceText = (about: number): string => `is there ${withArticle(noun(about).word)}?`
const whereText = (about: number): string => `where is the ${noun(about).word}?`
const orientationText = (about: number): string => `is the ${noun(about).word} upside down?`
const relationText = (name: string, a: number, b: number): string =>
  `is the ${noun(a).word} ${name} the ${noun(b).word}?`

const yesNo = (yes: boolean): string => (yes ? 'yes' : 'no')
const countAnswer = (scene: Scene): string => numbers[scene.objects.length] as string
const backgroundAnswer = (scene: Scene): string => (backgrounds[scene.background] as { name: string }).name
const whereAnswer = (object: SceneObject): string => quadrants[object.quadrant] as string

const column = (object: SceneObject): number => object.quadrant % 2
const row = (object: SceneObject): number => Math.floor(object.quadrant / 2)
const relations = [
  { name: 'left of', holds: (a: SceneObject, b: SceneObject): boolean => column(a) < column(b) },
  { name: 'right of', holds: (a: SceneObject, b: SceneObject): boolean => column(a) > column(b) },
  { name: 'above', holds: (a: SceneObject, b: SceneObject): boolean => row(a) < row(b) },
  { name: 'below', holds: (a: SceneObject, b: SceneObject): boolean => row(a) > row(b) },
]

function absentNoun(scene: Scene, random: Random, kind: NegativeKind): number {
  const there = new Set(scene.objects.map((object) => object.noun))
  const groups = new Set(scene.objects.map((object) => noun(object.noun).group))
  const absent = nouns.map((_, index) => index).filter((index) => !there.has(index))
  if (kind === 'popular') return random.pick(absent.slice(0, popular))
  return random.pick(kind === 'random' ? absent : absent.filter((index) => groups.has(noun(index).group)))
}

function extra(scene: Scene, random: Random): SceneObject {
  const used = new Set(scene.objects.map((object) => object.quadrant))
  const drawn = drawScene(random, [scene.vendor], 1).objects[0] as SceneObject
  const there = new Set(scene.objects.map((object) => object.noun))
  const index = random.weighted(nounWeights.map((weight, candidate) => (there.has(candidate) ? 0 : weight)))
  return moved({ ...drawn, noun: index }, random.pick([0, 1, 2, 3].filter((place) => !used.has(place))))
}

function withObjects(scene: Scene, objects: SceneObject[]): Scene {
  return { ...scene, objects: objects.sort((a, b) => a.quadrant - b.quadrant) }
}

function find(scene: Scene, about: number): SceneObject {
  return scene.objects.find((object) => object.noun === about) as SceneObject
}
