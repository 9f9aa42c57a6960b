/**
 * Stage 5: what lies between the pieces learns their languages from captions, before a denoising loss is spent on it. The published model takes
 * its resampler from BLIP-2 instead of fresh; here each image token is to be the word that stood in its place when the language model learnt,
 * and what the denoiser is told, from words or from a picture, is to be what its text encoder would have said.
 */
import { captionIds, paintDocument, type Scene, sceneAt, sceneBatch, slotCaption } from '../../data/index.js'
import { i64 } from '../../host-tensor.js'
import type { ClipText } from '../../models/clip-text.js'
import type { Deem } from '../../models/deem.js'
import { output } from '../../module.js'
import { ops } from '../../ops.js'
import { Scope } from '../../scope.js'
import { backward, type Tensor } from '../../tensor.js'
import { AdamW } from '../../train/adamw.js'
import { disposeAll, optimizerOptions, runStage, type StageResult, toTensors, type World } from '../world.js'
import { picturesOf, placeholderIds, sequenceOptions } from './words.js'

export async function trainBridges(w: World, deem: Deem, words: ClipText): Promise<StageResult> {
  const { batch, encoder_lr } = w.config.stages.bridges
  deem.freeze(/./)
  deem.unfreeze(['image_decoder.perceiver', 'image_decoder.queries', 'context_feat_proj', 'soi_token'])
  deem.unfreeze((name) => /^visual_tokenizer\.(perceiver_resampler|proj_|pos_|post_ln|sniffer)/.test(name))
  deem.freeze('visual.head.mlp')
  const optimizer = new AdamW(deem, {
    ...optimizerOptions(w, 'bridges', [0.9, 0.98]),
    groups: [{ match: 'sniffer.vision_model.visual', lr: encoder_lr }],
  })
  using table = deem.parameter('mm_decoder.embed_tokens.weight')
  const apply = (scope: Scope, x: Tensor, name: string): Tensor =>
    scope.keep(
      ops.linear(
        x,
        scope.keep(deem.parameter(`visual_tokenizer.${name}.weight`)),
        scope.keep(deem.parameter(`visual_tokenizer.${name}.bias`)),
        'none',
      ),
    )

  return await runStage(w, 'bridges', {
    models: { deem },
    optimizer,
    batch: (step) => {
      const scenes = Array.from({ length: batch }, (_, i): Scene => sceneAt(w.train, step * batch + i))
      const documents = scenes.map((scene) => paintDocument(scene))
      const {
        labels: _labels,
        prompt_offset: _offset,
        ...inputs
      } = sceneBatch(documents, w.sprites, sequenceOptions(w)).inputs
      const slots = i64(scenes.flatMap((scene) => placeholderIds(w, scene)))
      const input_ids = captionIds(scenes.map(slotCaption), w.tokenizer, w.config.model.image_tokens)
      return toTensors({ ...inputs, slots, input_ids } as never)
    },
    train: async ({ slots, input_ids, image_tensors_dec: _same, ...inputs }, step, lrFactor) => {
      using scope = new Scope()
      const seed = w.config.seed
      const told = scope.keep(await words.forward(input_ids as Tensor, { grad: false }))
      const cond = scope.keep(await deem.conditions(inputs as never, { seed, step }))
      const seen = scope.keep(await deem.see({ image_tensors: inputs['image_tensors'] as Tensor }, { seed, step }))
      const tokens = output(seen, 'query_embeds')
      const width = table.shape[1] as number
      const asWords = scope.keep(ops.reshape(apply(scope, tokens, 'proj_t'), [-1, width]))
      const target = scope.keep(ops.gatherRows(table, slots as Tensor))
      const scale = 1 / (ops.norm(table) ** 2 / table.size)
      const distance = scope.keep(ops.mulScalar(scope.keep(ops.mseLoss(asWords, target)), scale))
      const logits = scope.keep(ops.mulScalar(scope.keep(ops.linear(asWords, table, null, 'none')), scale / 10))
      const naming = scope.keep(ops.crossEntropy(logits, slots as Tensor, -100))
      const painting = scope.keep(ops.mseLoss(cond, told))
      const feedback = scope.keep(ops.mseLoss(apply(scope, tokens, 'proj_i'), told))
      await backward([distance, naming, painting, feedback])
      await optimizer.step(lrFactor)
      optimizer.zeroGrad()
      return { naming: naming.item(), words: distance.item(), painting: painting.item(), feedback: feedback.item() }
    },
    pictures: picturesOf,
    release: disposeAll,
  })
}
