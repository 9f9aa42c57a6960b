/** Stage 2: the denoiser, conditioned on captions of fixed slots; on one-object crops first, then on scenes. */
import {
  captionIds,
  cropAt,
  cropSlotCaption,
  renderCrops,
  renderScenes,
  sceneAt,
  slotCaption,
  stream,
} from '../../data/index.js'
import { ClipText } from '../../models/clip-text.js'
import { Unet } from '../../models/unet.js'
import type { Vae } from '../../models/vae.js'
import { ops } from '../../ops.js'
import { Scope } from '../../scope.js'
import { type Tensor, tensor } from '../../tensor.js'
import { AdamW } from '../../train/adamw.js'
import { denoiserConfig, textEncoderConfig } from '../parts.js'
import { building, disposeAll, optimizerOptions, runStage, type StageResult, toTensors, type World } from '../world.js'
import { signed } from './vae.js'

export interface TrainedDenoiser {
  unet: Unet
  text: ClipText
  result: StageResult
}

interface Batch extends Record<string, Tensor> {
  image: Tensor
  input_ids: Tensor
}

export async function trainDenoiser(w: World, vae: Vae, scale: number): Promise<TrainedDenoiser> {
  const settings = w.config.stages.denoiser
  const { seed } = w.config
  const unet = await Unet.build(denoiserConfig(w.config), building(w, 1))
  const text = await ClipText.build(textEncoderConfig(w.config, w.tokenizer.vocabSize), building(w, 2))
  const optimizer = new AdamW([unet, text], optimizerOptions(w, 'denoiser'))
  const cropSteps = Math.round(settings.steps * settings.crop_share)

  const batch = (step: number): Batch => {
    const crops = step < cropSteps
    const count = crops ? settings.crop_batch : settings.batch
    const scenes = Array.from({ length: count }, (_, i) =>
      crops ? cropAt(w.train, step * count + i) : sceneAt(w.train, step * count + i),
    )
    const captions = scenes.map((scene, i) => {
      const drop = stream(w.train, 'drop caption', step * count + i).bool(settings.drop_caption)
      return drop ? '' : crops ? cropSlotCaption(scene) : slotCaption(scene)
    })
    const pictures = crops ? renderCrops(scenes, w.sprites) : renderScenes(scenes, w.sprites)
    return {
      image: signed(pictures),
      ...toTensors({ input_ids: captionIds(captions, w.tokenizer, w.config.model.image_tokens) }),
    } as Batch
  }

  const train = async (
    { image, input_ids }: Batch,
    step: number,
    lrFactor: number,
  ): Promise<Record<string, number>> => {
    using scope = new Scope()
    const { mean } = scope.keep(await vae.encode({ image }, { grad: false }))
    const latent = scope.keep(ops.mulScalar(mean, scale))
    const context = scope.keep(await text.forward(input_ids))
    const { loss } = scope.keep(await unet.loss({ latent, context }, { seed, step }))
    await loss.backward()
    await optimizer.step(lrFactor)
    optimizer.zeroGrad()
    return { loss: loss.item() }
  }

  const result = await runStage(w, 'denoiser', {
    models: { unet, text },
    optimizer,
    batch,
    train,
    pictures: ({ image }) => image.shape[0] as number,
    release: disposeAll,
  })
  return { unet, text, result }
}

/** The text encoder's words for the caption that says nothing: where classifier-free guidance starts from. */
export async function emptyCaption(w: World, text: ClipText): Promise<Tensor> {
  const { data, shape } = captionIds([''], w.tokenizer, w.config.model.image_tokens)
  using input_ids = tensor(data, shape)
  return await text.forward(input_ids, { grad: false })
}
