/** What Stable Diffusion tells its denoiser where there is no prompt: DEEM's `neg_prompt_embeds` start as that. */
import { join } from 'node:path'
import { readJson } from '../json.js'
import { ClipText } from '../models/clip-text.js'
import { Scope } from '../scope.js'
import { type Tensor, tensor } from '../tensor.js'
import { ClipTokenizer } from '../tokenizer/clip.js'
import { assignPlan, isClean, planAssignment, weightsError } from './assign.js'
import { neededKeys } from './configs.js'
import { openWeights, type VariantOptions } from './folder.js'
import { clipTextNames } from './names.js'
import { transformersStems } from './source.js'

/**
 * The ids of the empty prompt, i64 [1, T], and the text encoder's output for it, f32 [1, T, C], from the `tokenizer` and
 * `text_encoder` of a Stable Diffusion folder. Throws ERR_IO, ERR_FORMAT, ERR_CONFIG or ERR_WEIGHTS naming the file or folder.
 */
export async function emptyPrompt(folder: string, call: VariantOptions = {}): Promise<{ ids: Tensor; embeds: Tensor }> {
  const encoder = join(folder, 'text_encoder')
  const path = join(encoder, 'config.json')
  const config = neededKeys(
    await readJson(path),
    path,
    [
      'vocab_size',
      'hidden_size',
      'intermediate_size',
      'num_hidden_layers',
      'num_attention_heads',
      'max_position_embeddings',
    ],
    ['hidden_act', 'layer_norm_eps'],
  )
  const signal = call.signal && { signal: call.signal }
  using model = await ClipText.build(config, signal)
  const plan = planAssignment(model, [
    { files: await openWeights(encoder, transformersStems, call), naming: clipTextNames },
  ])
  if (!isClean(plan.report)) throw weightsError(`'${encoder}'`, plan.report)
  await assignPlan(model, plan, signal)
  const tokenizer = await ClipTokenizer.load(join(folder, 'tokenizer'), config['max_position_embeddings'] as number)
  using scope = new Scope()
  const ids = scope.keep(tensor(BigInt64Array.from(tokenizer.encode(''), BigInt), [1, tokenizer.length]))
  const embeds = scope.keep(await model.forward(ids, { grad: false, ...signal }))
  return scope.release({ ids, embeds })
}
