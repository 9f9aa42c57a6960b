import { DeemError } from '../errors.js'
import { type HostTensor, i64 } from '../host-tensor.js'
import {
  buildSequences,
  type Document,
  image,
  type SequenceInputs,
  type SequenceOptions,
  type Sequences,
  text,
} from '../sequence.js'
import type { Tokenizer } from '../tokenizer/tokenizer.js'
import { trainWordTokenizer } from '../tokenizer/word-tokenizer.js'
import { captionTexts, denseCaption, sparseCaption } from './captions.js'
import { questionTexts, type SceneQuestion } from './questions.js'
import { renderScenes, type Scene, type SceneSource, sceneAt, stream } from './scenes.js'
import type { Sprites } from './sprites.js'

/** A tokenizer over every word that captions, questions and answers of scenes can hold, plus `more`. */
export function sceneTokenizer(more: readonly string[] = []): Tokenizer {
  return trainWordTokenizer([...captionTexts(), ...questionTexts(), ...more])
}

/** Picture, then caption: learns to describe. */
export function describeDocument(scene: Scene, caption: string = denseCaption(scene)): Document<Scene> {
  return [image(scene), text(caption)]
}

/** Caption, then picture: learns to paint. */
export function paintDocument(scene: Scene, caption: string = denseCaption(scene)): Document<Scene> {
  return [text(caption), image(scene)]
}

/** Picture, question, answer; only the answer carries loss. */
export function questionDocument({ scene, question }: SceneQuestion): Document<Scene> {
  return [image(scene), text(question.text, { loss: false }), text(question.answer)]
}

/** The same in words: the dense caption stands for the picture. */
export function textQuestionDocument({ scene, question }: SceneQuestion): Document<Scene> {
  return [text(denseCaption(scene)), text(question.text, { loss: false }), text(question.answer)]
}

/** Documents `start` .. `start + count - 1` of alignment: scenes in turn described and painted. */
export function alignmentDocuments(
  source: SceneSource,
  start: number,
  count: number,
  caption: 'dense' | 'sparse',
): Document<Scene>[] {
  return Array.from({ length: count }, (_, i) => {
    const scene = sceneAt(source, start + i)
    const words = caption === 'dense' ? denseCaption(scene) : sparseCaption(scene, stream(source, 'caption', start + i))
    return (start + i) % 2 === 0 ? describeDocument(scene, words) : paintDocument(scene, words)
  })
}

/** What a training step takes. */
export interface SceneBatch extends Sequences<Scene> {
  inputs: SequenceInputs & {
    /** [images, 64, 64, 3] in 0..1, for the encoder and for the decoder: the same array, scenes have one size. */
    image_tensors: HostTensor<'f32'>
    image_tensors_dec: HostTensor<'f32'>
  }
}

/** Rows and pictures of `documents`. */
export function sceneBatch(
  documents: readonly Document<Scene>[],
  sprites: Sprites,
  options: SequenceOptions,
): SceneBatch {
  const sequences = buildSequences(documents, options)
  const pictures = renderScenes(sequences.images, sprites)
  return { ...sequences, inputs: { ...sequences.inputs, image_tensors: pictures, image_tensors_dec: pictures } }
}

/** Captions as `[N, length]` ids with bos and eos, padded on the right; for text encoders. A caption too long is an error. */
export function captionIds(
  captions: readonly string[],
  tokenizer: Pick<Tokenizer, 'encode' | 'ids'>,
  length: number,
): HostTensor<'i64'> {
  const rows = captions.map((caption) => {
    const ids = tokenizer.encode(caption, { bos: true, eos: true })
    if (ids.length > length) {
      throw new DeemError(
        'ERR_VALUE',
        `[captionIds] captions must fit ${length} ids but ${JSON.stringify(caption)} has ${ids.length}`,
      )
    }
    return [...ids, ...new Array<number>(length - ids.length).fill(tokenizer.ids.pad)]
  })
  return i64(rows.flat(), [rows.length, length])
}

/**
 * Items `start` .. `end - 1`, each made while its predecessor is in use: after an item is handed out, the next is made on
 * the following turn of the event loop, when the native step that uses the first is already running.
 */
export async function* ahead<T>(
  start: number,
  end: number,
  make: (index: number) => T | Promise<T>,
): AsyncGenerator<T, void, void> {
  if (start >= end) return
  let current = await make(start)
  for (let index = start + 1; index <= end; index++) {
    if (index === end) {
      yield current
      return
    }
    const next = new Promise<T>((resolve, reject) => {
      setImmediate(() => Promise.resolve(index).then(make).then(resolve, reject))
    })
    // Awaited below; marked as handled so that a consumer that stops early sees no stray rejection.
    next.catch(() => undefined)
    yield current
    current = await next
  }
}
