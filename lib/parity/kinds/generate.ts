/** `model/deem_nano_generate`: greedy and beam decoding, scores of options, and painting by two samplers, step by step. */
import { dirname, join } from 'node:path'
import { PictureSession } from '../../generate/picture-session.js'
import { TextSession } from '../../generate/text-session.js'
import { Deem, type DeemInputs } from '../../models/deem.js'
import { ops } from '../../ops.js'
import { type Tensor, tensor } from '../../tensor.js'
import { below, type Case, type Json, loadCase, nchw, need, nhwc, type Tensors } from '../case.js'
import { type Comparison, compare, type Rule } from '../compare.js'

interface Call {
  name: string
  max_new_tokens: number
  min_length: number
  num_beams: number
  length_penalty?: number
  num_return_sequences?: number
}

function inputsOf(stored: Tensors): DeemInputs {
  const maps = Object.entries(stored).filter(([name]) => name.startsWith('image_tensors'))
  return {
    text_ids: need(stored, 'text_ids'),
    attention_mask: need(stored, 'attention_mask'),
    num_image_per_seq: need(stored, 'num_image_per_seq'),
    ...Object.fromEntries(maps.map(([name, x]) => [name, nhwc(x)])),
  }
}

export async function runGenerate(c: Case): Promise<Comparison[]> {
  const { weights, calls } = c.config as { weights: string; calls: Call[] }
  const base = await loadCase(dirname(join(c.dir, weights)), c.dtype)
  const { note: _note, dropout: _dropout, drop_path: _path, ...config } = base.config as Json
  using model = await Deem.build(config)
  await model.load(join(c.dir, weights))
  const results: Comparison[] = []
  const put = (name: string, got: Parameters<typeof compare>[1], rule: Rule) =>
    results.push(compare(name, got, need(c.outputs, name), rule, c.dtype))
  const rows = (ids: number[][]) =>
    tensor(BigInt64Array.from(ids.flat(), BigInt), [ids.length, (ids[0] as number[]).length])

  const prompt = inputsOf(below(c.inputs, 'prompt.'))
  for (const call of calls) {
    const y = await model.generateText(prompt, {
      maxNewTokens: call.max_new_tokens,
      minLength: call.min_length,
      numBeams: call.num_beams,
      lengthPenalty: call.length_penalty ?? 1,
      numReturnSequences: call.num_return_sequences ?? 1,
    })
    put(`${call.name}.ids`, rows(y.ids), 'exact')
    if (call.num_beams > 1) put(`${call.name}.scores`, Float32Array.from(y.scores), 'module')
    if (!c.outputs[`${call.name}.logits`]) continue
    // The scores it chose from, along its own way.
    using session = await TextSession.open(model, prompt)
    const [prompts = 0, steps = 0, vocabulary = 0] = need(c.outputs, `${call.name}.logits`).shape
    const logits = new Float32Array(prompts * steps * vocabulary)
    for (let i = 0; i < steps; i++) {
      const step = await session.logits(i === 0 ? undefined : y.ids.map((ids) => ids[i] as number))
      for (let r = 0; r < prompts; r++)
        logits.set(step.subarray(r * vocabulary, (r + 1) * vocabulary), (r * steps + i) * vocabulary)
    }
    put(`${call.name}.logits`, logits, 'module')
  }

  const options = below(c.inputs, 'options.')
  const [, width = 0] = need(options, 'ids').shape
  const [ids, keep] = [need(options, 'ids').toFloat32(), need(options, 'keep').toFloat32()]
  const lists = Array.from({ length: ids.length / width }, (_, r) =>
    [...ids.subarray(r * width, (r + 1) * width)].filter((_, i) => keep[r * width + i]),
  )
  const paint = inputsOf(below(c.inputs, 'paint.'))
  const { steps, guidance_scale: guidance } = c.config['paint'] as { steps: number; guidance_scale: number }
  const which = need(c.inputs, 'paint.target_image_idxs')
  const latent = nhwc(need(c.inputs, 'paint.latent'))
  for (const sampler of ['ddim', 'ddpm'] as const) {
    using session = await PictureSession.open(
      model,
      'picture',
      { ...paint, which, latent },
      { sampler, steps, guidance },
    )
    put(`${sampler}.timesteps`, session.timesteps, 'exact')
    if (sampler === 'ddim') put('paint.cond', await session.conditions(), 'module')
    const way: Tensor[] = []
    for (let i = 0; i < steps; i++) {
      const noise = sampler === 'ddpm' ? ops.slice(need(c.inputs, 'paint.ddpm_noise'), 0, i, i + 1) : undefined
      const own = noise && nhwc(ops.reshape(noise, noise.shape.slice(1)))
      way.push(nchw(await session.advance(1, own)))
    }
    const latents = ops.cat(way, 0)
    put(`${sampler}.latents`, ops.reshape(latents, [steps, ...(way[0] as Tensor).shape]), 'sampled')
    put(`${sampler}.image`, nchw(await session.decode()), 'picture')
  }
  put('options.scores', Float32Array.from(await model.score(inputsOf(options), lists)), 'module')
  return results
}
