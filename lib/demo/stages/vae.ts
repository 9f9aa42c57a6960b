/** Stage 1: a small VAE, on whole scenes: its norms see all of a picture, and backgrounds are most of it. */
import { renderScenes, sceneAt } from '../../data/index.js'
import { Vae } from '../../models/vae.js'
import { ops } from '../../ops.js'
import { tidy } from '../../scope.js'
import { type Tensor, tensor } from '../../tensor.js'
import { AdamW } from '../../train/adamw.js'
import { trainStep } from '../../train/step.js'
import { vaeConfig } from '../parts.js'
import { building, disposeAll, optimizerOptions, runStage, type StageResult, type World } from '../world.js'

/** Pictures in 0..1 as the VAE and the denoiser take them, in -1..1. */
export function signed(picture: { data: Float32Array; shape: number[] }): Tensor {
  return tidy(() => ops.addScalar(ops.mulScalar(tensor(picture.data, picture.shape), 2), -1))
}

export interface TrainedVae {
  vae: Vae
  /** 1 / deviation of its latents: the denoiser wants unit variance. */
  scale: number
  result: StageResult
}

export async function trainVae(w: World): Promise<TrainedVae> {
  const { batch, kl_weight } = w.config.stages.vae
  const vae = await Vae.build(vaeConfig(w.config), building(w, 0))
  const optimizer = new AdamW(vae, optimizerOptions(w, 'vae'))
  const result = await runStage(w, 'vae', {
    models: { vae },
    optimizer,
    batch: (step) => {
      const scenes = Array.from({ length: batch }, (_, i) => sceneAt(w.train, step * batch + i))
      return { image: signed(renderScenes(scenes, w.sprites)) }
    },
    train: async (inputs, step, lrFactor) => {
      const y = await trainStep(vae, inputs, optimizer, { options: { kl_weight }, lrFactor, seed: w.config.seed, step })
      return { loss: y['loss_recon'] ?? Number.NaN, kl: y['loss_kl'] ?? Number.NaN }
    },
    pictures: () => batch,
    release: disposeAll,
  })
  return { vae, scale: await latentScale(w, vae), result }
}

async function latentScale(w: World, vae: Vae): Promise<number> {
  const scenes = Array.from({ length: 64 }, (_, i) => sceneAt(w.train, i))
  using image = signed(renderScenes(scenes, w.sprites))
  const encoded = await vae.encode({ image }, { grad: false })
  const values = encoded.mean.toFloat32()
  disposeAll({ ...encoded })
  const mean = values.reduce((a, v) => a + v, 0) / values.length
  return 1 / Math.sqrt(values.reduce((a, v) => a + (v - mean) ** 2, 0) / values.length)
}
