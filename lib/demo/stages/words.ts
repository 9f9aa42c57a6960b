/** What the language model reads and says, as documents: shared by the stages that train it on words and on pictures. */
import {
  ask,
  backgrounds,
  cornerWords,
  denseCaption,
  nouns,
  type Question,
  questionKinds,
  type Random,
  type Scene,
  slotCaption,
} from '../../data/index.js'
import { DeemError } from '../../errors.js'
import type { Module } from '../../module.js'
import { ops } from '../../ops.js'
import { type Document, type SequenceOptions, text } from '../../sequence.js'
import type { Tensor } from '../../tensor.js'
import type { World } from '../world.js'

/** Whatever the model is to say ends with an end token of its own, so documents need none. */
export function sequenceOptions({ tokenizer, config: { model } }: World): SequenceOptions {
  return { tokenizer, imageTokens: model.image_tokens, maxLength: model.max_length, eos: false }
}

/** Words the model is to say, and to stop after. */
export function spoken({ tokenizer }: World, words: string): Document<never> {
  return [text([...tokenizer.encode(words), tokenizer.ids.eos])]
}

/** Questions about a scene with their answers; only answers carry loss. Existence, which is measured first, comes twice as often. */
export function turns(w: World, scene: Scene, random: Random, count: number): Document<never> {
  return Array.from({ length: count }, () => anyQuestion(scene, random)).flatMap((q) => [
    text(q.text, { loss: false }),
    ...spoken(w, q.answer),
  ])
}

const kinds = ['existence', ...questionKinds] as const

function anyQuestion(scene: Scene, random: Random): Question {
  for (;;) {
    const question = ask(random.pick(kinds), scene, random)
    if (question) return question
  }
}

/** The slot caption as ids, filled up to as many as a picture has tokens. */
export function placeholderIds({ tokenizer, config }: World, scene: Scene): number[] {
  const words = tokenizer.encode(slotCaption(scene))
  const free = config.model.image_tokens - words.length
  if (free < 0)
    throw new DeemError(
      'ERR_CONFIG',
      `[demo] image_tokens ${config.model.image_tokens} cannot hold ${words.length} words`,
    )
  return [...words, ...new Array<number>(free).fill(tokenizer.ids.eos)]
}

/**
 * Word pairs: a noun and its state (or none), a corner and its noun (or none), background and its colour. Looking things up is learnt from many
 * such answers in a few hundred steps; from whole questions, with two answers of one bit each, it took ten times as long to begin.
 */
export function quiz(scene: Scene, random: Random, count: number): Document<never> {
  const pair = (asked: string, answer: string): Document<never> => [text(asked, { loss: false }), text(answer)]
  const word = (noun: number) => (nouns[noun] as { word: string }).word
  return Array.from({ length: count }, () => {
    const about = random.uniform()
    if (about < 0.1) return pair('background', (backgrounds[scene.background] as { name: string }).name)
    if (about < 0.35) {
      const quadrant = random.int(cornerWords.length)
      const object = scene.objects.find((o) => o.quadrant === quadrant)
      return pair(cornerWords[quadrant] as string, object ? word(object.noun) : 'none')
    }
    const noun = random.bool() ? random.pick(scene.objects).noun : random.int(nouns.length)
    const object = scene.objects.find((o) => o.noun === noun)
    return pair(word(noun), object ? (object.upside ? 'upside' : 'upright') : 'none')
  }).flat()
}

/** What is said about a scene, in turn: word pairs twice, a caption with questions, questions. */
export function conversation(w: World, scene: Scene, random: Random, index: number): Document<never> {
  if (index % 2 === 0) return quiz(scene, random, 20)
  return index % 4 === 1
    ? [...spoken(w, denseCaption(scene)), ...turns(w, scene, random, 3)]
    : turns(w, scene, random, 6)
}

/** Multiplies a starting value. */
export function scaleParameter(model: Module, name: string, by: number): void {
  using old = model.view(name, 'f32')
  using fresh = ops.mulScalar(old, by)
  model.assign(name, fresh)
}

/** The scalar losses of a step, for curves. */
export function losses(y: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    ['loss_txt', 'loss_img', 'loss_sniffer'].flatMap((name) => {
      const value = y[name]
      return value === undefined ? [] : [[name, value]]
    }),
  )
}

export const picturesOf = (inputs: Record<string, Tensor>): number => inputs['image_tensors']?.shape[0] ?? 0
