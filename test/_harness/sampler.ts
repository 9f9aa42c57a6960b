// Denoising in a loop: the simplest call that takes as long as one likes and counts its steps.
// As a script: node sampler.js finish | exit | forever tells to standard output, or as a worker to its parent.
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort } from 'node:worker_threads'
import { type CallOptions, type CreateOptions, Module, tensor } from 'deem'

const config = {
  unet: {
    sample_size: 8,
    in_channels: 4,
    out_channels: 4,
    down_block_types: ['CrossAttnDownBlock2D'],
    up_block_types: ['CrossAttnUpBlock2D'],
    block_out_channels: [32],
    layers_per_block: 1,
    norm_num_groups: 8,
    cross_attention_dim: 16,
    attention_head_dim: [2],
    use_linear_projection: true,
  },
  scheduler: { beta_start: 0.00085, beta_end: 0.012, beta_schedule: 'scaled_linear', steps_offset: 1 },
}

export interface Sampler extends Disposable {
  model: Module
  /** As many denoising steps. */
  run: (steps: number, options?: CallOptions) => Promise<void>
  dispose: () => void
}

export async function sampler(options: CreateOptions = {}): Promise<Sampler> {
  const model = await Module.create('unet', config, options)
  const latent = tensor(new Float32Array(2 * 32 * 32 * 4), [2, 32, 32, 4])
  const context = tensor(new Float32Array(2 * 4 * 16), [2, 4, 16])
  const dispose = () => {
    for (const x of [model, latent, context]) x.dispose()
  }
  return {
    model,
    run: async (steps, call) => {
      const y = await model.call('sample', { latent, context }, { steps }, { grad: false, ...call })
      for (const x of Object.values(y)) x.dispose()
    },
    dispose,
    [Symbol.dispose]: dispose,
  }
}

if (!isMainThread || process.argv[1] === fileURLToPath(import.meta.url)) {
  const how = process.argv[2]
  const { run } = await sampler()
  let told = 0
  const onProgress = (done: number, total: number) => {
    parentPort?.postMessage([done, total])
    if (isMainThread) console.log(`told ${done} of ${total}`)
    if (++told === 2 && how === 'exit') process.exit(3)
  }
  await run(how === 'finish' ? 60 : 1000, { onProgress })
  console.log('finished')
}
