/**
 * Stage 3: the language model, in words alone. Where a picture will stand there are words for now: the slot caption in a start-of-image place
 * and as many places as a picture has tokens, so that pictures only have to learn to look like it.
 */
import { denseCaption, type Scene, sceneAt, stream } from '../../data/index.js'
import type { Deem } from '../../models/deem.js'
import { buildSequences, type Document, type TextPart, text } from '../../sequence.js'
import { AdamW } from '../../train/adamw.js'
import { disposeAll, optimizerOptions, runStage, type StageResult, toTensors, type World } from '../world.js'
import { losses, placeholderIds, quiz, scaleParameter, sequenceOptions, spoken, turns } from './words.js'

export async function trainLanguage(w: World, deem: Deem): Promise<StageResult> {
  const { batch, steps, quiz_share } = w.config.stages.language
  widenStart(deem)
  deem.freeze(/./)
  deem.unfreeze((name) => /^(mm_decoder|text_decoder)\./.test(name) && !name.includes('llama_cross_attn'))
  const optimizer = new AdamW(deem, optimizerOptions(w, 'language'))
  return runStage(w, 'language', {
    models: { deem },
    optimizer,
    batch: (step) => {
      const documents = Array.from({ length: batch }, (_, i): Document<never> => {
        const at = step * batch + i
        const scene = sceneAt(w.train, at)
        const random = stream(w.train, 'text questions', at)
        const kind = step < quiz_share * steps ? 0 : i % 3
        const rest =
          kind === 0
            ? quiz(scene, random, 20)
            : kind === 1
              ? [...spoken(w, denseCaption(scene)), ...turns(w, scene, random, 3)]
              : turns(w, scene, random, 6)
        return [placeholder(w, scene), ...rest]
      })
      return toTensors(buildSequences(documents, sequenceOptions(w)).inputs as never)
    },
    train: async (inputs, step, lrFactor) =>
      losses(await deem.trainStep(inputs as never, optimizer, { lrFactor, seed: w.config.seed, step })),
    pictures: () => 0,
    release: disposeAll,
  })
}

/** What stands in a picture's place: one word for start of image, then as many as a picture has tokens. */
const placeholder = (w: World, scene: Scene): TextPart =>
  text([...w.tokenizer.encode('photo'), ...placeholderIds(w, scene)], { loss: false })

/**
 * Starting values of 0.02, right for widths in the thousands, are small beside what a layer of width 128 adds: words would drown in the
 * residual stream. Weights start at 1 / sqrt(width) instead, those that write to the stream lower by sqrt(2 layers), words at 0.08.
 */
function widenStart(deem: Deem): void {
  const layers = deem.parameters().filter(({ name }) => name.endsWith('self_attn.o_proj.weight')).length
  for (const { name, shape } of deem.parameters()) {
    if (name === 'mm_decoder.embed_tokens.weight') scaleParameter(deem, name, 4)
    if (!/^mm_decoder\..*(self_attn|mlp)\..*_proj\.weight$/.test(name)) continue
    const gain = 1 / Math.sqrt(shape[1] as number) / 0.02
    scaleParameter(deem, name, /o_proj|down_proj/.test(name) ? gain / Math.sqrt(2 * layers) : gain)
  }
}
