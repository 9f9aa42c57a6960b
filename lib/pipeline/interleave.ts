/** Text and pictures as a model alternates them, on a session that has read what stands before. */
import { checkLimits, decode } from '../generate/decode.js'
import { type PaintOptions, paintAll } from '../generate/picture-session.js'
import type { TextSession } from '../generate/text-session.js'
import type { Picture } from '../image/index.js'
import { image } from '../sequence.js'
import type { Pipeline } from './pipeline.js'
import { disposeInputs, picturesOf, promptInputs } from './prompt.js'
import { decoding, type TextOptions, type TextResult, Writer } from './writer.js'

export interface TextDelta {
  type: 'text'
  /** Text that is new and final. */
  text: string
}
export interface PicturePiece {
  type: 'image'
  image: Picture
}

export interface GenerateOptions extends TextOptions {
  /** Pictures painted at most. Default 1. */
  maxImages?: number
  /** `image` begins with a picture, `text` paints none, `auto` (default) as the model wants. */
  mode?: 'auto' | 'text' | 'image'
  /** How pictures are painted. */
  painting?: PaintOptions
}

/** A stretch of text, or a picture. The last id of a text was picked but is not read yet. */
export type Said = { type: 'text'; result: TextResult } | PicturePiece

/** Yields text as it becomes certain, and notes what was written. */
export async function* write(
  session: TextSession,
  pipeline: Pipeline,
  options: TextOptions,
): AsyncGenerator<TextDelta, TextResult, undefined> {
  const { tokenizer } = pipeline
  const writer = new Writer(tokenizer, options)
  for await (const step of decode(session, pipeline.ends(), decoding(options, writer))) {
    const more = writer.take(step, 0)
    if (more !== '') yield { type: 'text', text: more }
    if (writer.done) break
  }
  const rest = writer.end()
  if (rest !== '') yield { type: 'text', text: rest }
  return writer.result(tokenizer)
}

/**
 * Writes until the model wants to show a picture, paints it, appends its encoding to the session, and goes on. Ends with the text, or
 * when `maxImages` are painted and it wants another. The session has then read everything but the last id of the last text.
 */
export async function* interleave(
  session: TextSession,
  pipeline: Pipeline,
  options: GenerateOptions,
): AsyncGenerator<TextDelta | PicturePiece, Said[], undefined> {
  const { maxImages = 1, mode = 'auto', painting = {}, maxTokens = 64, signal } = options
  checkLimits(maxTokens, 0)
  const banned = [...(options.banned ?? []), ...(mode === 'text' ? [pipeline.tokenizer.ids.soi] : [])]
  const said: Said[] = []
  let left = maxTokens
  for (let images = 0, wanted = mode === 'image'; ; wanted = true) {
    if (wanted) {
      if (images >= maxImages) return said
      const seed = typeof painting.seed === 'number' ? painting.seed + images : (painting.seed ?? images)
      const progress = options.onProgress && { onProgress: options.onProgress }
      const piece = { type: 'image' as const, image: await paint(session, { ...progress, ...painting, seed, signal }) }
      yield piece
      const inputs = await promptInputs([[image(piece.image)]], pipeline.tokenizer, pipeline.geometry, {
        ...options,
        bos: false,
      })
      try {
        await session.append(inputs, { signal })
      } finally {
        disposeInputs(inputs)
      }
      said.push(piece)
      images++
    }
    if (left <= 0) return said
    const result = yield* write(session, pipeline, { ...options, maxTokens: left, banned })
    said.push({ type: 'text', result })
    if (result.finishReason !== 'image') return said
    left -= result.ids.length
  }
}

/** What a text of one row would show next. */
async function paint(text: TextSession, options: PaintOptions): Promise<Picture> {
  using session = await text.picture({}, options, { signal: options.signal })
  return (await picturesOf(await paintAll(session, options)))[0] as Picture
}
