import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Deem, ops, type Tensor } from 'deem'

export const fixtures = fileURLToPath(new URL('../test/fixtures/', import.meta.url))

const images = ['image_tensors', 'image_tensors_dec', 'image_tensors_mask']
const used = [...images, 'text_ids', 'attention_mask', 'num_image_per_seq', 'nearest_bos_idxs']

/** What a training step takes of a stored case: pictures channels last, draws left to the seed. */
export function permuteImages(stored: Record<string, Tensor>): Record<string, Tensor> {
  const out: Record<string, Tensor> = {}
  for (const name of used) {
    const t = stored[name]
    if (t) out[name] = images.includes(name) ? ops.contiguous(ops.permute(t, [0, 2, 3, 1])) : t
  }
  return out
}

/** The model of test/fixtures/model/deem_nano, and its configuration. */
export async function nano(): Promise<{ model: Deem; config: object }> {
  const dir = `${fixtures}model/deem_nano/`
  const stored = JSON.parse(readFileSync(`${dir}config.json`, 'utf8'))
  const { note: _note, dropout: _dropout, drop_path: _path, ...config } = stored
  const model = await Deem.build(config)
  await model.load(`${dir}weights.safetensors`)
  return { model, config }
}
