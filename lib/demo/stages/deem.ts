/** Stages 6 and 7, which train DEEM itself: alignment with all three losses, then questions. */
import { denseCaption, type Scene, sceneAt, sceneBatch, stream } from '../../data/index.js'
import type { ClipText } from '../../models/clip-text.js'
import type { ConvNext } from '../../models/convnext.js'
import { Deem } from '../../models/deem.js'
import type { Unet } from '../../models/unet.js'
import type { Vae } from '../../models/vae.js'
import type { Module } from '../../module.js'
import { type Document, image, text } from '../../sequence.js'
import { AdamW } from '../../train/adamw.js'
import { deemConfig } from '../parts.js'
import { building, disposeAll, optimizerOptions, runStage, type StageResult, toTensors, type World } from '../world.js'
import { emptyCaption } from './denoiser.js'
import { conversation, losses, picturesOf, quiz, scaleParameter, sequenceOptions, spoken } from './words.js'

/** Caption, then picture. Words before a picture have nothing to learn from. */
const paintDocument = (scene: Scene): Document<Scene> => [text(denseCaption(scene), { loss: false }), image(scene)]

/** A fresh DEEM for these parts; the scale is the VAE's. Of bf16, it keeps what earlier stages have trained in f32. */
export async function createDeem(w: World, scale: number): Promise<Deem> {
  const deem = await Deem.build(deemConfig(w.config, w.tokenizer, scale), building(w, 5))
  deem.keepMasters(/./)
  return deem
}

/** Puts the pieces into DEEM, under its names. */
export async function assemble(
  w: World,
  deem: Module,
  { vae, unet, text: words, encoder }: { vae: Vae; unet: Unet; text: ClipText; encoder: ConvNext },
): Promise<void> {
  const copy = (from: Module, prefix: string) => {
    for (const { name } of from.parameters()) {
      using value = from.view(name, 'f32')
      deem.assign(prefix + name, value)
    }
  }
  copy(vae, 'visual_tokenizer.encoder.vae.')
  copy(unet, 'visual_tokenizer.encoder.')
  copy(encoder, 'visual_tokenizer.sniffer.')
  // Published models start these at 0.001: nothing, for widths of thousands. Here what comes out starts as large as what goes in otherwise:
  // words of the language model, and contexts of the denoiser.
  scaleParameter(deem, 'visual_tokenizer.proj_t.weight', 8)
  scaleParameter(deem, 'visual_tokenizer.proj_i.weight', 90)
  using empty = await emptyCaption(w, words)
  deem.assign('image_decoder.neg_prompt_embeds', empty)
}

/** Stage 6: language model and denoiser frozen, the encoder and everything between them trained with all three losses. */
export async function trainAlignment(w: World, deem: Deem): Promise<StageResult> {
  const { batch, encoder_lr, lr } = w.config.stages.alignment
  deem.unfreeze(/./)
  deem.freeze((name) => /^mm_decoder\./.test(name) && !name.includes('llama_cross_attn'))
  deem.freeze(['text_decoder.', 'visual_tokenizer.encoder.vae.', 'visual_tokenizer.encoder.unet.', 'visual.head.mlp'])
  const optimizer = new AdamW(deem, {
    ...optimizerOptions(w, 'alignment', [0.9, 0.98]),
    maxGradNorm: 3, // three losses, two of them weighted by five
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
        if (i % 2 === 1) return paintDocument(scene)
        return [image(scene), ...spoken(w, denseCaption(scene)), ...quiz(scene, stream(w.train, 'alignment', at), 12)]
      })
      return toTensors(sceneBatch(documents, w.sprites, sequenceOptions(w)).inputs as never)
    },
    train: async (inputs, step, lrFactor) => {
      const options = { feedback: w.feedback, training: true }
      return losses(await deem.trainStep(inputs as never, optimizer, { options, lrFactor, seed: w.config.seed, step }))
    },
    pictures: picturesOf,
    release: disposeAll,
  })
}

/** Stage 7: pictures with questions and answers, text and consistency loss; the encoder stays as alignment left it. A few pictures are painted. */
export async function trainQuestions(w: World, deem: Deem): Promise<StageResult> {
  const { batch } = w.config.stages.questions
  deem.freeze(/./)
  deem.unfreeze((name) => /^(mm_decoder|text_decoder)\./.test(name))
  deem.unfreeze(['perceiver_resampler', 'visual_tokenizer.proj_', 'visual_tokenizer.pos_', 'visual_tokenizer.post_ln'])
  deem.unfreeze(['image_decoder.perceiver', 'context_feat_proj'])
  const optimizer = new AdamW(deem, optimizerOptions(w, 'questions', [0.9, 0.98]))
  return runStage(w, 'questions', {
    models: { deem },
    optimizer,
    batch: (step) => {
      const documents = Array.from({ length: batch }, (_, i): Document<Scene> => {
        const at = 1_000_000 + step * batch + i
        const scene = sceneAt(w.train, at)
        // One scene in four is painted: the language model moves, and what reads it to paint has to follow.
        if (i % 4 === 3) return paintDocument(scene)
        return [image(scene), ...conversation(w, scene, stream(w.train, 'questions', at), i - Math.floor(i / 4))]
      })
      return toTensors(sceneBatch(documents, w.sprites, sequenceOptions(w)).inputs as never)
    },
    train: async (inputs, step, lrFactor) => {
      const options = { feedback: w.feedback, training: true }
      return losses(await deem.trainStep(inputs as never, optimizer, { options, lrFactor, seed: w.config.seed, step }))
    },
    pictures: picturesOf,
    release: disposeAll,
  })
}
