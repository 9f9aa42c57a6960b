// The smallest whole model, with stored weights and the batch of its training case.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Deem, type DeemTrainInputs, ops, readTensors, type Tensor, tidy } from 'deem'

const folder = fileURLToPath(new URL('../../test/fixtures/model/deem_nano/', import.meta.url))

/** Stored maps are NCHW. */
const channelsLast = (x: Tensor) => tidy(() => ops.contiguous(ops.permute(x, [0, 2, 3, 1])))

export async function nano(): Promise<{ model: Deem; inputs: DeemTrainInputs }> {
  const stored = JSON.parse(readFileSync(`${folder}config.json`, 'utf8')) as Record<string, unknown>
  const { note: _note, dropout: _dropout, drop_path: _path, ...config } = stored
  const model = await Deem.build(config)
  await model.load(`${folder}weights.safetensors`)
  const { tensors } = await readTensors(`${folder}inputs.safetensors`)
  const read = (name: string, maps = false) => {
    const x = tensors[name] as Tensor
    return maps ? channelsLast(x) : x
  }
  const plain = ['text_ids', 'attention_mask', 'num_image_per_seq', 'nearest_bos_idxs']
  const draws = ['sniffer_t', 'img_t', 'uncond_rand']
  const maps = [
    'image_tensors',
    'image_tensors_dec',
    'image_tensors_mask',
    'sniffer_eps',
    'sniffer_noise',
    'img_eps',
    'img_noise',
  ]
  const inputs = Object.fromEntries([
    ...[...plain, ...draws].map((name) => [name, read(name)]),
    ...maps.map((name) => [name, read(name, true)]),
  ]) as DeemTrainInputs
  const used = new Set(Object.values(inputs))
  for (const x of Object.values(tensors)) if (!used.has(x)) x.dispose()
  return { model, inputs }
}
