/** Parts of the model, built alone through the public model API. */
import { backward, Module, ops, type Tensor, tensor, tidy } from 'deem'
import type { Case, Precision, Settings } from '../case.js'
import { disposeAll, drawCotangents, drawInputs, inputGradients, type Subject } from './subject.js'

interface Program {
  method: (s: Settings) => string
  /** Which outputs count. */
  outputs: (s: Settings) => readonly string[]
}

const programs: Record<string, Program> = {
  convnext: { method: () => 'forward', outputs: () => ['tokens', 'c2', 'c3', 'c4', 'c5'] },
  perceiver: { method: () => 'forward', outputs: () => ['y'] },
  llama: { method: () => 'forward', outputs: () => ['last_hidden'] },
  unet: { method: () => 'forward', outputs: () => ['pred'] },
  vae: {
    method: (s) => s['half'] as string,
    outputs: (s) => (s['half'] === 'encode' ? ['mean', 'logvar'] : ['image']),
  },
}

/** Gradients of larger parameters are compared by their first so many elements. */
export const comparedElements = 1 << 16

/** What starts at zero would hide whole branches from the comparison. */
export function enliven(m: Module): void {
  for (const [i, p] of m.parameters().entries()) {
    const fan = p.shape.slice(1).reduce((a, b) => a * b, 1)
    const scale = /(^|\.)gate$/.test(p.name)
      ? 0.5
      : /sampling_offsets\.weight$|attention_weights\.weight$|mmfs_\w+(\.\d+)?\.conv\.weight$/.test(p.name)
        ? 1 / Math.sqrt(fan)
        : 0
    if (scale === 0) continue
    using value = tidy(() => ops.mulScalar(ops.randn(p.shape, 9, i), scale))
    m.assign(p.name, value)
  }
}

// The module of the last case: forward, backward and checkpointed passes of one part follow each other.
let held: { key: string; module: Module } | undefined

const keyOf = (c: Case, precision: Precision) => JSON.stringify([c.program, c.settings['config'], precision])

/** Lets go of the last module unless this case uses it too. Gives whether it does. */
export function keepModule(c: Case, precision: Precision): boolean {
  if (c.group === 'part' && held?.key === keyOf(c, precision)) return true
  releaseModule()
  return false
}

async function moduleOf(c: Case, precision: Precision): Promise<{ key: string; module: Module }> {
  if (keepModule(c, precision) && held) return held
  const module = await Module.create(c.program, c.settings['config'] as object, { seed: 3, dtype: precision })
  enliven(module)
  held = { key: keyOf(c, precision), module }
  return held
}

export function releaseModule(): void {
  held?.module.dispose()
  held = undefined
}

/** Gradients of trained parameters, `grad.w.NAME`, the first elements of large ones. */
export function parameterGradients(m: Module): Record<string, Tensor> {
  return Object.fromEntries(
    m.parameters().flatMap(({ name, trainable }) => {
      const g = trainable ? m.gradient(name) : null
      if (!g) return []
      using whole = g
      const some = tidy(() => {
        const flat = ops.reshape(whole, [-1])
        return ops.contiguous(ops.slice(flat, 0, 0, Math.min(flat.size, comparedElements)))
      })
      return [[`grad.w.${name}`, some]]
    }),
  )
}

export async function partSubject(c: Case, precision: Precision): Promise<Subject> {
  const program = programs[c.program]
  if (!program) throw new Error(`there is no program '${c.program}'`)
  const s = c.settings
  const { key, module } = await moduleOf(c, precision)
  const trains = c.pass === 'backward' && s['trains'] === true
  module.setTrainable(/./, trains)
  if (s['prepack']) await module.prepack()
  else await module.dropPrepacked()
  const x = drawInputs(c, precision)
  const names = program.outputs(s)
  const options = s['checkpoint'] ? { checkpoint: true } : {}
  const grad = c.pass === 'backward'
  const call = async (): Promise<Record<string, Tensor>> => {
    const all = await module.call(program.method(s), x, options, { grad })
    for (const [name, t] of Object.entries(all)) if (!names.includes(name)) t.dispose()
    return Object.fromEntries(names.map((name) => [name, all[name] as Tensor]))
  }
  let cotangents: Record<string, Tensor> = {}
  if (grad) {
    const y = await call()
    cotangents = drawCotangents(y)
    disposeAll(y)
  }
  const forget = () => {
    module.zeroGrad()
    for (const t of Object.values(x)) if (t.requiresGrad) t.clearGrad()
  }
  const pass = async () => {
    const y = await call()
    if (grad)
      await backward(
        Object.values(y),
        Object.keys(y).map((name) => cotangents[`cotangent.${name}`] as Tensor),
      )
    return y
  }
  return {
    inputs: { ...x, ...cotangents },
    weights: { key, save: (path) => module.save(path) },
    results: async () => {
      const y = await pass()
      const values = Object.fromEntries(Object.entries(y).map(([name, t]) => [name, t.detach()]))
      disposeAll(y)
      if (!grad) return values
      const results = { ...values, ...inputGradients(x), ...parameterGradients(module) }
      forget()
      return results
    },
    run: async (times) => {
      for (let i = 0; i < times; i++) {
        disposeAll(await pass())
        if (grad) forget()
      }
    },
    [Symbol.dispose]: () => disposeAll(x, cotangents),
  }
}

/** A scalar as a result to compare. */
export const scalar = (v: number): Tensor => tensor([v])
