/** Stages 3, 5 and 6, which train DEEM itself: language alone, alignment with all three losses, questions. */
import {
  ask,
  denseCaption,
  paintDocument,
  type Question,
  questionKinds,
  type Scene,
  sceneAt,
  sceneBatch,
  sparseCaption,
  stream,
} from '../../data/index.js'
import type { Random } from '../../data/random.js'
import type { ClipText } from '../../models/clip-text.js'
import type { ConvNext } from '../../models/convnext.js'
import { Deem } from '../../models/deem.js'
import type { Unet } from '../../models/unet.js'
import type { Vae } from '../../models/vae.js'
import type { Module } from '../../module.js'
import { buildSequences, type Document, image, text } from '../../sequence.js'
import type { Tensor } from '../../tensor.js'
import { AdamW } from '../../train/adamw.js'
import { trainStep } from '../../train/step.js'
import { deemConfig } from '../parts.js'
import { disposeAll, optimizerOptions, runStage, type StageResult, toTensors, type World } from '../world.js'
import { emptyCaption } from './denoiser.js'

/** Questions are drawn of these kinds; existence, the one that is measured first, more often. */
const kinds = ['existence', 'existence', ...questionKinds] as const

function anyQuestion(scene: Scene, random: Random): Question {
  for (;;) {
    const question = ask(random.pick(kinds), scene, random)
    if (question) return question
  }
}

const sequenceOptions = (w: World) => ({
  tokenizer: w.tokenizer,
  imageTokens: w.config.model.image_tokens,
  maxLength: w.config.model.max_length,
  // Whatever the model is to say ends with it, not only documents.
  eos: false,
})

/** Words the model is to say, and to stop after. */
function spoken({ tokenizer }: World, words: string): Document<never> {
  return [text([...tokenizer.encode(words), tokenizer.ids.eos])]
}

/** Questions about a scene with their answers; only answers carry loss. */
function turns(w: World, scene: Scene, random: Random): Document<never> {
  return Array.from({ length: questionsPerScene }, () => anyQuestion(scene, random)).flatMap((q) => [
    text(q.text, { loss: false }),
    ...spoken(w, q.answer),
  ])
}
const questionsPerScene = 4

/** A fresh DEEM for these parts; the scale is the VAE's. */
export function createDeem(w: World, scale: number): Promise<Deem> {
  return Deem.build(deemConfig(w.config, w.tokenizer, scale), { seed: w.config.seed + 5 })
}

const losses = (y: Record<string, number>): Record<string, number> =>
  Object.fromEntries(
    ['loss_txt', 'loss_img', 'loss_sniffer'].flatMap((name) => {
      const value = y[name]
      return value === undefined ? [] : [[name, value]]
    }),
  )

/** Stage 3: descriptions, questions and answers in words alone. */
export async function trainLanguage(w: World, deem: Module): Promise<StageResult> {
  const { batch } = w.config.stages.language
  deem.freeze(/./)
  deem.unfreeze((name) => /^(mm_decoder|text_decoder)\./.test(name) && !name.includes('llama_cross_attn'))
  const optimizer = new AdamW(deem, optimizerOptions(w, 'language'))
  return runStage(w, 'language', {
    models: { deem },
    optimizer,
    batch: (step) => {
      const documents = Array.from({ length: batch }, (_, i) => {
        const at = step * batch + i
        const scene = sceneAt(w.train, at)
        return [...spoken(w, denseCaption(scene)), ...turns(w, scene, stream(w.train, 'text questions', at))]
      })
      return toTensors(buildSequences(documents, sequenceOptions(w)).inputs as never)
    },
    train: async (inputs, step, lrFactor) =>
      losses(await trainStep(deem, inputs, optimizer, { lrFactor, seed: w.config.seed, step })),
    pictures: () => 0,
    release: disposeAll,
  })
}

/** Puts the pieces into DEEM, under its names. */
export async function assemble(
  w: World,
  deem: Module,
  { vae, unet, text: words, encoder }: { vae: Vae; unet: Unet; text: ClipText; encoder: ConvNext },
): Promise<void> {
  const copy = (from: Module, prefix: string) => {
    for (const { name } of from.parameters()) {
      using value = from.read(name)
      deem.assign(prefix + name, value)
    }
  }
  copy(vae, 'visual_tokenizer.encoder.vae.')
  copy(unet, 'visual_tokenizer.encoder.')
  copy(encoder, 'visual_tokenizer.sniffer.')
  using empty = await emptyCaption(w, words)
  deem.assign('image_decoder.neg_prompt_embeds', empty)
}

/** Stage 5: language model and denoiser frozen, the encoder and everything between them trained with all three losses. */
export async function trainAlignment(w: World, deem: Module): Promise<StageResult> {
  const { batch, encoder_lr, lr } = w.config.stages.alignment
  deem.unfreeze(/./)
  deem.freeze((name) => /^mm_decoder\./.test(name) && !name.includes('llama_cross_attn'))
  deem.freeze(['text_decoder.', 'visual_tokenizer.encoder.vae.', 'visual_tokenizer.encoder.unet.', 'visual.head.mlp'])
  const optimizer = new AdamW(deem, {
    ...optimizerOptions(w, 'alignment', [0.9, 0.98]),
    groups: [
      { match: 'llama_cross_attn.gate', lr, weightDecay: 0 },
      { match: 'sampling_offsets', lr: lr / 10, weightDecay: 0 },
      { match: 'sniffer.vision_model.visual', lr: encoder_lr },
    ],
  })
  return runStage(w, 'alignment', {
    models: { deem },
    optimizer,
    batch: (step) => {
      const documents = Array.from({ length: batch }, (_, i): Document<Scene> => {
        const at = step * batch + i
        const scene = sceneAt(w.train, at)
        const random = stream(w.train, 'alignment', at)
        const caption = random.bool(0.7) ? denseCaption(scene) : sparseCaption(scene, random)
        return i % 2 === 0 ? [image(scene), ...spoken(w, caption)] : paintDocument(scene, caption)
      })
      return toTensors(sceneBatch(documents, w.sprites, sequenceOptions(w)).inputs as never)
    },
    train: async (inputs, step, lrFactor) => {
      const options = { feedback: w.feedback, noimage_cond: true, training: true }
      return losses(await trainStep(deem, inputs, optimizer, { options, lrFactor, seed: w.config.seed, step }))
    },
    pictures: picturesOf,
    release: disposeAll,
  })
}

/** Stage 6: pictures with questions and answers, text and consistency loss; the encoder stays as alignment left it. */
export async function trainQuestions(w: World, deem: Module): Promise<StageResult> {
  const { batch } = w.config.stages.questions
  deem.freeze(/./)
  deem.unfreeze((name) => /^(mm_decoder|text_decoder)\./.test(name))
  deem.unfreeze(['perceiver_resampler', 'visual_tokenizer.proj_', 'visual_tokenizer.pos_', 'visual_tokenizer.post_ln'])
  deem.freeze('image_decoder')
  const optimizer = new AdamW(deem, optimizerOptions(w, 'questions', [0.9, 0.98]))
  return runStage(w, 'questions', {
    models: { deem },
    optimizer,
    batch: (step) => {
      const documents = Array.from({ length: batch }, (_, i): Document<Scene> => {
        const at = 1_000_000 + step * batch + i
        const scene = sceneAt(w.train, at)
        // One picture in four is described again, so that captions are not forgotten.
        if (i % 4 === 3) return [image(scene), ...spoken(w, denseCaption(scene))]
        return [image(scene), ...turns(w, scene, stream(w.train, 'questions', at))]
      })
      return toTensors(sceneBatch(documents, w.sprites, sequenceOptions(w)).inputs as never)
    },
    train: async (inputs, step, lrFactor) => {
      const options = { feedback: w.feedback, image_loss: false, training: true }
      return losses(await trainStep(deem, inputs, optimizer, { options, lrFactor, seed: w.config.seed, step }))
    },
    pictures: picturesOf,
    release: disposeAll,
  })
}

const picturesOf = (inputs: Record<string, Tensor>): number => inputs['image_tensors']?.shape[0] ?? 0
