// A small model in training; apart from the test runner, so that workers can have it too.
import { Module, type Tensor, tensor } from 'deem'
import { AdamW, trainStep } from 'deem/train'
import { generator } from './random.js'

const config = { feature_dim: 24, vocab_size: 50, embed_dim: 16, pad_token_id: 0 }

export interface Trainee extends Disposable {
  model: Module
  optimizer: AdamW
  inputs: Record<string, Tensor>
  /** One training step; resolves to the loss. */
  step: (options?: { signal?: AbortSignal }) => Promise<number>
  /** All parameters in a row. */
  values: () => number[]
}

/** A small model with an optimizer and one batch. */
export async function trainee(seed = 1, batch = 8): Promise<Trainee> {
  const model = await Module.create('contrastive', config, { seed })
  const optimizer = new AdamW(model, { lr: 1e-3, maxGradNorm: 1 })
  const { normal, uniform } = generator(seed)
  const inputs = {
    features: tensor(Float32Array.from({ length: batch * 24 }, normal), [batch, 24]),
    words: tensor(
      BigInt64Array.from({ length: batch * 6 }, () => BigInt(Math.floor(uniform() * 50))),
      [batch, 6],
    ),
  }
  return {
    model,
    optimizer,
    inputs,
    step: async (options) =>
      (await trainStep(model, inputs, optimizer, { method: 'loss', ...options }))['loss'] as number,
    values: () =>
      model.parameters().flatMap(({ name }) => {
        using value = model.read(name)
        return [...value.toFloat32()]
      }),
    [Symbol.dispose]() {
      for (const item of [model, optimizer, ...Object.values(inputs)]) item.dispose()
    },
  }
}
