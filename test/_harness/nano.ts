// The smallest whole model, with stored weights and the batch of its training case.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Deem, type DeemInputs, type DeemTrainInputs, ops, readTensors, type Tensor, tidy } from 'deem'
import { whole } from './model.js'

const folder = fileURLToPath(new URL('../../test/fixtures/model/deem_nano/', import.meta.url))
export const nanoWeights = `${folder}weights.safetensors`

/** Stored maps are NCHW. */
const channelsLast = (x: Tensor) => tidy(() => ops.contiguous(ops.permute(x, [0, 2, 3, 1])))

/** Its configuration, without the keys that describe how the case was made. */
export function nanoConfig(): Record<string, unknown> {
  const stored = JSON.parse(readFileSync(`${folder}config.json`, 'utf8')) as Record<string, unknown>
  const { note: _note, dropout: _dropout, drop_path: _path, ...config } = stored
  return config
}

/** The model, with other values for some keys if given, and the batch. */
export async function nano(changes: object = {}): Promise<{ model: Deem; inputs: DeemTrainInputs }> {
  const model = await Deem.build({ ...nanoConfig(), ...changes })
  await model.load(nanoWeights)
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

/** Rows padded on the left, as prompts are. */
export function prompts({ text_ids, attention_mask, num_image_per_seq, image_tensors }: DeemInputs): DeemInputs {
  const [rows, length] = text_ids.shape as [number, number]
  const keep = attention_mask.toFloat32()
  const turned = (x: Tensor) =>
    whole(
      Array.from({ length: rows }, (_, r) => {
        const row = [...x.toFloat32().subarray(r * length, (r + 1) * length)]
        const real = keep.subarray(r * length, (r + 1) * length).filter((v) => v !== 0).length
        return [...row.slice(real), ...row.slice(0, real)]
      }).flat(),
      [rows, length],
    )
  return {
    text_ids: turned(text_ids),
    attention_mask: turned(attention_mask),
    num_image_per_seq,
    ...(image_tensors && { image_tensors }),
  }
}
