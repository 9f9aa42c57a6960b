/** `model/deem_nano` (one training step with all its variants) and `model/deem_nano_train` (five optimizer steps). */
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { DeemError } from '../../errors.js'
import { Module } from '../../module.js'
import { ops } from '../../ops.js'
import type { Tensor } from '../../tensor.js'
import { AdamW } from '../../train/adamw.js'
import { publishedGroups } from '../../train/published.js'
import { cosineWithWarmup } from '../../train/schedule.js'
import { trainStep } from '../../train/step.js'
import { type Case, type Json, loadCase, nchw, need, nhwc, type Tensors } from '../case.js'
import { type Comparison, type ComputeType, compare, type Rule } from '../compare.js'
import { float64Values, orFloat64 } from '../float64.js'
import { absent, compareGradient, type Timing } from '../program.js'

/** Stored tensors in the engine's layout: images and latents channels last. */
function batchOf(inputs: Tensors, draws: Tensors = inputs): Tensors {
  const images = ['image_tensors', 'image_tensors_dec', 'image_tensors_mask']
  const latents = ['sniffer_eps', 'sniffer_noise', 'img_eps', 'img_noise']
  const plain = ['text_ids', 'attention_mask', 'num_image_per_seq', 'nearest_bos_idxs']
  return {
    ...Object.fromEntries(plain.map((n) => [n, need(inputs, n)])),
    ...Object.fromEntries(images.map((n) => [n, nhwc(need(inputs, n))])),
    ...Object.fromEntries(latents.map((n) => [n, nhwc(need(draws, n))])),
    ...Object.fromEntries(['sniffer_t', 'img_t', 'uncond_rand'].map((n) => [n, need(draws, n)])),
  }
}

async function build(config: Json, weights: string, dtype: ComputeType): Promise<Module> {
  // Keys that describe how the case was made, not the model.
  const { note: _note, dropout: _dropout, drop_path: _path, ...model } = config
  const m = await Module.create('deem', model, { dtype })
  await m.load(weights)
  return m
}

/** Stored outputs that are maps or latents, NCHW on disk. */
const mapOutput = /^(map\.c\d|.*_(latent|noisy|pred))$/
const exact = new Set(['labels', 'context_attention_mask', 'mmfs_mask', 'sniffer_timesteps', 'cross_attention_mask'])

function ruleOf(name: string): Rule {
  if (exact.has(name.slice(name.indexOf('.') + 1))) return 'exact'
  if (/(^|\.)loss/.test(name)) return 'loss'
  return name.endsWith('grad_norm') ? 'trajectory-norm' : 'module'
}

export async function runDeem(c: Case, repeat: number, timing: Timing): Promise<Comparison[]> {
  const names = gradientOrder(c.dir)
  using m = await build(c.config, join(c.dir, 'weights.safetensors'), c.dtype)
  const batch = batchOf(c.inputs)
  const results: Comparison[] = []
  const put = (name: string, got: Tensor | Float32Array | undefined) => {
    const want = need(c.outputs, name)
    if (!got) return results.push(absent(name, false))
    const value =
      got instanceof Float32Array
        ? got
        : mapOutput.test(name.slice(name.indexOf('once.') + 1)) || mapOutput.test(name)
          ? nchw(got)
          : got
    results.push(compare(name, value, want, ruleOf(name), c.dtype))
  }
  /** Runs one variant and compares every stored output with its prefix. */
  const variant = async (prefix: string, inputs: Tensors, options: Json, backward: boolean) => {
    m.zeroGrad()
    const y = await m.call('train', inputs, { details: true, ...options }, { grad: backward })
    if (backward) await need(y, 'loss').backward()
    for (const name of Object.keys(c.outputs)) {
      const own = name.startsWith(prefix) ? name.slice(prefix.length) : ''
      if (
        !own ||
        (prefix === '' && variants.some((v) => v !== '' && name.startsWith(v))) ||
        own.startsWith('grad_norm')
      )
        continue
      put(name, y[own])
    }
  }
  const gradients = () => Float32Array.from(names, (name) => l2(m.gradient(name)))

  await variant('', batch, {}, true)
  for (const [name, want] of Object.entries(c.grads)) {
    const got = m.gradient(name)
    results.push(compareGradient(name, got, want, 'module-gradient', c.dtype))
  }
  if (c.outputs['grad_norm']) {
    put('grad_norm', Float32Array.of(Math.hypot(...gradients())))
  }
  await variant('once.', batch, { second_normalization: false }, true)
  const once = gradients()
  for (const [name, value] of [
    ['once.grad_norm', Float32Array.of(Math.hypot(...once))],
    ['once.grad_norms', once],
  ] as const)
    if (c.outputs[name]) {
      results.push(compare(name, value, need(c.outputs, name), 'module', c.dtype))
    }
  await variant('noimage_cond.', batch, { noimage_cond: true }, false)
  if (c.inputs['prompt_offset'])
    await variant('prompt_offset.', { ...batch, prompt_offset: c.inputs['prompt_offset'] }, {}, false)
  const { image_tensors_mask: _mask, ...unmasked } = batch
  await variant('no_image_mask.', unmasked, {}, false)
  if (c.inputs['image_loss_mask'])
    await variant('image_loss_mask.', { ...batch, image_loss_mask: c.inputs['image_loss_mask'] }, {}, false)

  if (repeat > 0) await time(m, batch, repeat, timing)
  return results
}

const variants = ['', 'once.', 'noimage_cond.', 'prompt_offset.', 'no_image_mask.', 'image_loss_mask.']

/** The step as users take it: one native task, forward + backward + AdamW; the forward pass alone beside it. */
async function time(m: Module, batch: Tensors, repeat: number, timing: Timing): Promise<void> {
  m.zeroGrad()
  using optimizer = new AdamW(m, { ...publishedGroups, lr: 1e-9 })
  for (let i = 0; i < repeat + 2; i++) {
    let start = performance.now()
    const y = await m.call('train', batch, {}, { grad: false })
    const forward = performance.now() - start
    for (const t of Object.values(y)) t.dispose()
    start = performance.now()
    await trainStep(m, batch, optimizer)
    const step = performance.now() - start
    if (i < 2) continue // warm caches
    timing.forward.push(forward)
    timing.backward.push(step - forward)
  }
}

function l2(g: Tensor | null): number {
  return g ? ops.norm(g) : 0
}

/** Names of the trained parameters in the order of the stored norms: kept beside the optimizer case. */
function gradientOrder(dir: string): string[] {
  const config = JSON.parse(readFileSync(join(dirname(dir), 'deem_nano_train', 'config.json'), 'utf8')) as {
    parameters: string[]
  }
  return config.parameters.map((line) => line.split(' ')[0] as string)
}

export async function runDeemTrain(c: Case, _repeat: number, timing: Timing): Promise<Comparison[]> {
  const base = await loadCase(join(dirname(c.dir), 'deem_nano'), c.dtype)
  using m = await build(base.config, join(base.dir, 'weights.safetensors'), c.dtype)
  const config = c.config as {
    betas: [number, number]
    eps: number
    max_grad_norm: number
    warmup_steps: number
    total_steps: number
    steps: number
    parameters: string[]
    published_schedule: { warmup: number; total: number; at_steps: number[] }
  }
  using optimizer = new AdamW(m, {
    ...publishedGroups,
    betas: config.betas,
    eps: config.eps,
    maxGradNorm: config.max_grad_norm,
  })
  const results: Comparison[] = []
  const exact = c.dtype === 'f32' ? float64Values(c.dir, c.kind) : {}
  const put = (name: string, got: Tensor | Float32Array | undefined, rule: Rule) => {
    const want = c.outputs[name]
    if (!want) return
    if (!got) return results.push(absent(name, false))
    const judge = (wanted: Tensor) => compare(name, got, wanted, rule, c.dtype)
    results.push(orFloat64(judge(want), exact[name], judge))
  }

  const wanted = config.parameters.map((line) => {
    const [name, lr, weightDecay] = line.split(' ') as [string, string, string]
    return { name, lr: Number(lr), weightDecay: Number(weightDecay) }
  })
  const ours = new Map(optimizer.parameters.map((p) => [p.name, p]))
  const aliases = m.aliases()
  const find = (name: string) => ours.get(name) ?? ours.get(aliases[name] ?? '')
  for (const p of wanted) {
    const own = find(p.name)
    if (!own || own.lr !== p.lr || own.weightDecay !== p.weightDecay)
      throw new DeemError(
        'ERR_CONFIG',
        `parameter group of '${p.name}': stored lr ${p.lr} decay ${p.weightDecay}, ours ${JSON.stringify(own)}`,
      )
  }
  if (wanted.length !== ours.size)
    throw new DeemError('ERR_CONFIG', `${ours.size} parameters train, stored are ${wanted.length}`)

  const norms = () => Float32Array.from(wanted, ({ name }) => ops.norm(m.read(name)))
  put('before.norms', norms(), 'parameter-norm')
  const schedule = cosineWithWarmup(config.warmup_steps, config.total_steps)
  for (let k = 0; k < config.steps; k++) {
    const draws = Object.fromEntries(
      Object.entries(c.inputs).flatMap(([name, t]) =>
        name.startsWith(`step${k}.`) ? [[name.slice(`step${k}.`.length), t]] : [],
      ),
    )
    const start = performance.now()
    const y = await trainStep(m, batchOf(base.inputs, draws), optimizer, { lrFactor: schedule(k) })
    timing.forward.push(performance.now() - start)
    for (const loss of ['loss', 'loss_txt', 'loss_img', 'loss_sniffer'])
      put(`step${k}.${loss}`, Float32Array.of(y[loss] ?? Number.NaN), 'trajectory-loss')
    put(`step${k}.grad_norm_before_clip`, Float32Array.of(y['grad_norm'] ?? Number.NaN), 'trajectory-norm')
    put(`step${k}.lr_factor`, Float32Array.of(schedule(k)), 'op')
    put(`step${k}.norms`, norms(), 'parameter-norm')
  }
  for (const name of Object.keys(c.outputs))
    if (name.startsWith('after.')) put(name, m.read(name.slice('after.'.length)), 'module')
  const { warmup, total, at_steps } = config.published_schedule
  put('published_schedule_factor', Float32Array.from(at_steps, cosineWithWarmup(warmup, total)), 'op')
  return results
}
