/** Stage 4: the ConvNeXt encoder, contrastively: crops against their captions, both ways (Radford et al., CLIP). */
import { captionIds, cropAt, cropCaption, renderCrops } from '../../data/index.js'
import { ConvNext } from '../../models/convnext.js'
import { Module, output } from '../../module.js'
import { ops } from '../../ops.js'
import { Scope, tidy } from '../../scope.js'
import { type Tensor, tensor } from '../../tensor.js'
import { AdamW } from '../../train/adamw.js'
import { encoderConfig } from '../parts.js'
import { building, disposeAll, optimizerOptions, runStage, type StageResult, toTensors, type World } from '../world.js'

const clipMean = [0.48145466, 0.4578275, 0.40821073]
const clipDeviation = [0.26862954, 0.26130258, 0.27577711]
const captionLength = 12

export interface TrainedEncoder {
  encoder: ConvNext
  result: StageResult
}

export async function trainEncoder(w: World): Promise<TrainedEncoder> {
  const settings = w.config.stages.encoder
  const { seed } = w.config
  const encoder = await ConvNext.build(encoderConfig(w.config), building(w, 3))
  const heads = await Module.create(
    'contrastive',
    {
      feature_dim: w.config.model.encoder.dims[3],
      vocab_size: w.tokenizer.vocabSize,
      embed_dim: 64,
      pad_token_id: w.tokenizer.ids.pad,
    },
    building(w, 4),
  )
  // The adapters learn in alignment; the pooled features come before them.
  encoder.freeze(['adapter_', 'visual.head.mlp'])
  const optimizer = new AdamW([encoder, heads], optimizerOptions(w, 'encoder'))

  const result = await runStage(w, 'encoder', {
    models: { encoder, heads },
    optimizer,
    batch: (step) => {
      const crops = Array.from({ length: settings.batch }, (_, i) => cropAt(w.train, step * settings.batch + i))
      const { data, shape } = renderCrops(crops, w.sprites)
      return {
        pixels: normalised(data, shape),
        ...toTensors({ words: captionIds(crops.map(cropCaption), w.tokenizer, captionLength) }),
      } as Record<'pixels' | 'words', Tensor>
    },
    train: async ({ pixels, words }, step, lrFactor) => {
      using scope = new Scope()
      const { pooled } = scope.keep(await encoder.forward(pixels, { training: true, seed, step }))
      const z = scope.keep(await heads.call('loss', { features: pooled, words }))
      const loss = output(z, 'loss')
      await loss.backward()
      await optimizer.step(lrFactor)
      optimizer.zeroGrad()
      return { loss: loss.item() }
    },
    pictures: () => settings.batch,
    release: disposeAll,
  })
  heads.dispose()
  return { encoder, result }
}

function normalised(data: Float32Array, shape: number[]): Tensor {
  return tidy(() => ops.div(ops.sub(tensor(data, shape), tensor(clipMean)), tensor(clipDeviation)))
}
