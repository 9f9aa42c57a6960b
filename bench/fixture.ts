import { ops, type Tensor } from 'deem'

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
