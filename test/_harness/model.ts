// Checks that every model shares: configurations and calls that must be refused, gradients of all inputs and parameters.
import test from 'ava'
import { backward, DeemError, type ErrorCode, Module, output, type Tensor, tensor } from 'deem'
import { generator } from './op.js'

export type Config = Record<string, unknown>
export type Inputs = Record<string, Tensor>

/** Standard normal values, `scale` times. */
export function normals(shape: number[], seed: number, scale = 1): Tensor {
  const { normal } = generator(seed)
  return tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => scale * normal()),
    shape,
  )
}

export function whole(values: readonly number[], shape: number[]): Tensor {
  return tensor(BigInt64Array.from(values, BigInt), shape)
}

/** Replaces every parameter and buffer by random values, so that gates, zero offsets and the like hide nothing. */
export function enliven(m: Module, seed = 1): void {
  m.parameters().forEach(({ name, shape }, i) => {
    const fan = shape.slice(1).reduce((a, b) => a * b, 1)
    const vector = shape.length === 1
    const noise = normals(shape, seed * 1000 + i, vector ? 0.3 : 1 / Math.sqrt(fan)).toFloat32()
    m.assign(name, tensor(vector && name.endsWith('weight') ? noise.map((v) => v + 1) : noise, shape))
  })
}

export async function lively(kind: string, config: Config, seed = 1): Promise<Module> {
  const m = await Module.create(kind, config)
  enliven(m, seed)
  return m
}

/** Each changed configuration must be refused with ERR_CONFIG and a message that fits; `undefined` removes a key. */
export function refusesConfig(kind: string, good: Config, cases: Record<string, [Config, RegExp]>): void {
  for (const [name, [change, message]] of Object.entries(cases))
    test(`${kind} refuses ${name}`, async (t) => {
      const error = await t.throwsAsync(Module.create(kind, { ...good, ...change }))
      t.is(DeemError.isInstance(error) && error.code, 'ERR_CONFIG', error?.message)
      t.regex(error?.message ?? '', message)
    })
}

interface BadCall {
  code: ErrorCode
  /** Laid over the good inputs; `undefined` removes one. */
  inputs?: Record<string, Tensor | undefined>
  method?: string
  options?: object
}

/** Each changed call must reject with its code, and the model must work afterwards. */
export function refusesCalls(kind: string, config: Config, good: () => Inputs, cases: Record<string, BadCall>): void {
  test(`${kind} refuses bad calls`, async (t) => {
    const m = await Module.create(kind, config)
    for (const [name, { code, inputs, method, options }] of Object.entries(cases)) {
      const error = await t.throwsAsync(m.call(method ?? 'forward', { ...good(), ...inputs }, options), undefined, name)
      t.is(DeemError.isInstance(error) && error.code, code, `${name}: ${error?.message}`)
    }
    await t.notThrowsAsync(m.call('forward', good()))
  })
}

interface GradientOptions {
  /** The output whose weighted sum is differentiated. */
  of: string
  options?: object
  /** Inputs that want a gradient; default all of f32. */
  inputs?: string[]
  /** Parameters whose gradient is zero in exact arithmetic. */
  zero?: RegExp
  /** Parameters that the method does not read. */
  unread?: RegExp
  /** Tells configurations of one model apart. */
  label?: string
}

/**
 * The derivative along random directions of each input and parameter against central differences, in f32: a relative
 * error of 1 % of the gradient's length. Then everything is frozen but one parameter, which alone must get a gradient.
 */
export function gradients(
  kind: string,
  config: Config,
  inputs: () => Inputs,
  { of, options = {}, inputs: names, zero, unread, label }: GradientOptions,
): void {
  const title = label ? `${kind}, ${label}` : kind
  test(`${title}: gradients of inputs and parameters agree with differences`, async (t) => {
    const m = await lively(kind, config)
    const x = inputs()
    const wanted = names ?? Object.keys(x).filter((name) => x[name]?.dtype === 'f32')
    for (const name of wanted) (x[name] as Tensor).requiresGrad = true
    const y = output(await m.call('forward', x, options), of)
    const seed = normals(y.shape, 77)
    const weights = seed.toFloat32()
    await backward([y], [seed])
    const value = async (replaced: Inputs = {}) => {
      const v = output(await m.call('forward', { ...x, ...replaced }, options, { grad: false }), of).toFloat32()
      return v.reduce((a, e, i) => a + e * (weights[i] as number), 0)
    }
    const judge = async (name: string, at: Tensor, g: Tensor | null, move: (v: Tensor) => Promise<number>) => {
      if (!g) return t.fail(`${name} has no gradient`)
      const slope = g.toFloat32()
      const length = Math.hypot(...slope)
      if (zero?.test(name)) return t.true(length < 1e-5, `${name} should have no slope but has ${length}`)
      t.true(length > 1e-6, `the gradient of ${name} is zero`)
      // Along the gradient itself, where the slope is largest, bent by noise so that every component counts.
      const noise = normals(at.shape, 5, length / Math.sqrt(slope.length)).toFloat32()
      const bent = slope.map((s, i) => s + (noise[i] as number))
      const unit = bent.map((v) => v / Math.hypot(...bent))
      const values = at.toFloat32()
      const step = 2e-3 * Math.max(1, Math.hypot(...values) / Math.sqrt(values.length))
      const shifted = (by: number) =>
        tensor(
          values.map((v, i) => v + by * (unit[i] as number)),
          at.shape,
        )
      const want = ((await move(shifted(step))) - (await move(shifted(-step)))) / (2 * step)
      const got = slope.reduce((a, s, i) => a + s * (unit[i] as number), 0)
      t.true(
        Math.abs(got - want) <= 0.01 * length + 2e-3,
        `${name}: slope ${got}, by differences ${want}, of ${length}`,
      )
    }
    for (const name of wanted) {
      const at = x[name] as Tensor
      await judge(name, at, at.grad, (v) => value({ [name]: v }))
    }
    for (const p of m.parameters()) {
      if (p.buffer || unread?.test(p.name)) {
        t.is(m.gradient(p.name), null, `${p.name} has a gradient`)
        continue
      }
      const before = m.read(p.name)
      const move = async (v: Tensor) => {
        m.assign(p.name, v)
        const moved = await value()
        m.assign(p.name, before)
        return moved
      }
      await judge(p.name, before, m.gradient(p.name), move)
    }
  })

  test(`${title}: frozen parameters get no gradient`, async (t) => {
    const m = await lively(kind, config)
    const trained = m.parameters().filter((p) => !p.buffer && !zero?.test(p.name) && !unread?.test(p.name))
    const kept = (trained[trained.length >> 1] as { name: string }).name
    m.freeze('')
    m.unfreeze((name) => name === kept)
    const y = output(await m.call('forward', inputs(), options), of)
    await backward([y], [normals(y.shape, 78)])
    for (const { name } of m.parameters()) t.is(m.gradient(name) !== null, name === kept, name)
  })
}

export { compare } from './op.js'
