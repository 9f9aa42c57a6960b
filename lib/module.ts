import { DeemError } from './errors.js'
import {
  type Device,
  type DType,
  type LoadReport,
  type NativeModel,
  type NativeTensor,
  native,
  type ParameterInfo,
  type PlainTensor,
} from './native.js'
import { optionsJson } from './options.js'
import { type CallOptions, run } from './task.js'
import { Tensor } from './tensor.js'

export type { LoadReport, ParameterInfo, PlainTensor } from './native.js'

export interface CreateOptions extends CallOptions {
  /** Seed of the starting values. Default 0. */
  seed?: number
  /** Of the parameters, and of what is computed with them. Default f32. Training in bf16: see `AdamW`. */
  dtype?: DType
  /** Where the model lies and computes; default `defaultDevice()`. Starting values are the same bits everywhere. */
  device?: Device | undefined
}

export interface ForwardOptions extends CallOptions {
  /** Whether results carry a graph. Default true. */
  grad?: boolean
  /** Dropout and stochastic depth draw from (seed, step). Defaults 0. */
  seed?: number
  step?: number
}

/** Anything that picks parameters by name: a piece of the name, a pattern, a function, or a list of these. */
export type NameMatch = string | RegExp | ((name: string) => boolean) | readonly NameMatch[]

export function matches(name: string, match: NameMatch): boolean {
  if (typeof match === 'string') return name.includes(match)
  if (match instanceof RegExp) return match.test(name)
  if (typeof match === 'function') return match(name)
  if (!Array.isArray(match))
    throw new DeemError(
      'ERR_VALUE',
      `names are picked by text, a pattern, a function or a list of these, not by ${typeof match}`,
    )
  return match.some((m) => matches(name, m))
}

/**
 * A model in the engine: named parameters, and methods that take and return named tensors.
 * The models under `deem/models/*` give these methods types; any part can be built alone.
 */
export class Module implements Disposable {
  /** @internal */
  readonly handle: NativeModel
  /** The registered name, e.g. `vae`. */
  readonly kind: string

  /** @internal */
  constructor(kind: string, handle: NativeModel) {
    this.kind = kind
    this.handle = handle
  }

  /** Builds a model of a registered kind with fresh parameters. Throws ERR_CONFIG naming unknown or missing keys. */
  static async create(kind: string, config: object, options: CreateOptions = {}): Promise<Module> {
    return new Module(kind, await createHandle(kind, config, options))
  }

  /** Every parameter and buffer, in the order of the model. */
  parameters(): ParameterInfo[] {
    return this.handle.parameters()
  }
  /** Second published names of shared tensors. */
  aliases(): Record<string, string> {
    return this.handle.aliases()
  }
  /** Makes every parameter whose name matches trainable or frozen; frozen ones hold no gradient. Returns how many. */
  setTrainable(match: NameMatch, on: boolean): number {
    const names = this.parameters()
      .filter((p) => !p.buffer && matches(p.name, match))
      .map((p) => p.name)
    this.handle.setTrainable(names, on)
    return names.length
  }
  freeze(match: NameMatch): number {
    return this.setTrainable(match, false)
  }
  unfreeze(match: NameMatch): number {
    return this.setTrainable(match, true)
  }
  /**
   * Keeps f32 values, masters, beside matching weights of bf16 or f16: what is loaded and assigned stays there unrounded, training goes on
   * from there, and {@link save} with another dtype writes them. They begin as what the weights hold. `AdamW` calls this for what it trains;
   * call it before loading f32 weights into a bf16 model that is to be trained. Returns how many weights have masters of those that match.
   */
  keepMasters(match: NameMatch): number {
    const found = this.parameters().filter((p) => !p.buffer && matches(p.name, match))
    const names = found.filter((p) => p.dtype === 'bf16' || p.dtype === 'f16').map((p) => p.name)
    this.handle.keepMasters(names, true)
    return names.length
  }
  /** Forgets masters: four bytes a weight less, of which only the rounded values stay. */
  dropMasters(match: NameMatch): void {
    const found = this.parameters().filter((p) => p.master && matches(p.name, match))
    this.handle.keepMasters(
      found.map((p) => p.name),
      false,
    )
  }
  /**
   * Keeps matching weights of linear layers a second time, as the panels that products of more than a few rows read, where this machine is
   * faster that way: bf16 on a CPU with AVX512_BF16. Twice the memory for these weights, for some percent of the time. A weight whose
   * values are written, by `assign`, `load` or an optimizer, is no longer kept so.
   * Results may differ in the last bits. Returns how many are kept: 0 where nothing is gained.
   */
  prepack(match: NameMatch = '', call: CallOptions = {}): Promise<number> {
    return run(() => this.handle.prepack(this.linearWeights(match), true), call)
  }
  /** Gives back the memory that {@link prepack} took for matching weights. */
  async dropPrepacked(match: NameMatch = ''): Promise<void> {
    await run(() => this.handle.prepack(this.linearWeights(match), false), {})
  }
  private linearWeights(match: NameMatch): string[] {
    return this.parameters()
      .filter((p) => p.linear && matches(p.name, match))
      .map((p) => p.name)
  }
  /** The live tensor of a parameter; convolution weights are `[O, KH, KW, I]`. */
  parameter(name: string): Tensor {
    return new Tensor(this.handle.parameter(name))
  }
  /** A copy of a parameter in the published layout. */
  read(name: string): Tensor {
    return new Tensor(this.handle.read(name))
  }
  /**
   * The live values of a parameter in the published layout: no copy, and no graph. Given a dtype that is not the parameter's: those of its
   * master, in f32, if it has one.
   */
  view(name: string, dtype?: DType): Tensor {
    return new Tensor(this.handle.view(name, dtype ?? ''))
  }
  /** A parameter's gradient in the published layout, or null. Of its dtype; f32 where it was added up from several parts. */
  gradient(name: string): Tensor | null {
    const g = this.handle.gradient(name)
    return g && new Tensor(g)
  }
  /** Overwrites a parameter with a value in the published layout. */
  assign(name: string, value: Tensor): void {
    this.handle.assign(name, value.handle)
  }
  /**
   * The same for many, off the JavaScript thread; values may be mapped from files and of any floating dtype. With `leading` a value
   * may be the first rows of its parameter, whose other rows stay as they are.
   */
  assignAll(
    values: Readonly<Record<string, Tensor>>,
    { leading = false, ...call }: { leading?: boolean } & CallOptions = {},
  ): Promise<void> {
    const handles = Object.values(values).map((t) => t.handle)
    return run(() => this.handle.assignAll(Object.keys(values), handles, leading), call)
  }
  /** @internal Gives parameters the starting values that they were built without; does nothing to others. */
  initialize(names: string[], call: CallOptions = {}): Promise<void> {
    return run(() => this.handle.draw(names), call)
  }
  zeroGrad(): void {
    this.handle.zeroGrad()
  }

  /**
   * Reads weights from a safetensors file. `prefix` selects tensors and is cut off their names. Throws ERR_WEIGHTS listing
   * what is missing or unexpected unless `strict` is false, which returns the lists instead.
   */
  load(
    path: string,
    { prefix = '', strict = true, ...call }: { prefix?: string; strict?: boolean } & CallOptions = {},
  ): Promise<LoadReport> {
    return run(() => this.handle.load(path, prefix, strict), call)
  }
  /**
   * Writes all parameters and buffers as safetensors, atomically; `dtype` defaults to the model's. Any other dtype is written from the
   * masters of weights that have them: a model trained in bf16 is saved with `dtype: 'f32'` as the optimizer has it.
   */
  save(path: string, { dtype, ...call }: { dtype?: DType } & CallOptions = {}): Promise<void> {
    return run(() => this.handle.save(path, dtype ?? ''), call)
  }

  /**
   * Opens something with a memory of its own that works on this model, e.g. a text being written. It is called like a model, and holds
   * this one in memory until it is disposed.
   */
  async open(
    kind: string,
    inputs: Record<string, Tensor | undefined>,
    options: object = {},
    call?: CallOptions,
  ): Promise<SessionHandle> {
    const handles = handlesOf(inputs)
    return new Module(kind, await run(() => this.handle.open(kind, handles, optionsJson(options)), call))
  }

  /** Calls a method with named tensors, which may lie on any device. The results belong to the caller and lie on the model's. */
  async call(
    method: string,
    inputs: Record<string, Tensor | undefined>,
    options: object = {},
    { grad = true, seed = 0, step = 0, ...call }: ForwardOptions = {},
  ): Promise<Record<string, Tensor>> {
    const handles = handlesOf(inputs)
    const outputs = await run(
      () => this.handle.call(method, handles, optionsJson(options), grad, seed, step, false),
      call,
    )
    return Object.fromEntries(Object.entries(outputs).map(([name, h]) => [name, new Tensor(h)]))
  }

  /** The same without gradients, and with the results as plain arrays: nothing to dispose, and no wait for the engine to read them. */
  async callForData(
    method: string,
    inputs: Record<string, Tensor | undefined>,
    options: object = {},
    call?: CallOptions,
  ): Promise<Record<string, PlainTensor>> {
    const handles = handlesOf(inputs)
    return run(() => this.handle.call(method, handles, optionsJson(options), false, 0, 0, true), call)
  }

  dispose(): void {
    this.handle.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** What {@link Module.open} gives. */
export type SessionHandle = Pick<Module, 'open' | 'call' | 'callForData' | 'dispose'>

function handlesOf(tensors: Record<string, Tensor | undefined>): Record<string, NativeTensor> {
  return Object.fromEntries(
    Object.entries(tensors).flatMap(([name, t]) => (t === undefined ? [] : [[name, t.handle] as const])),
  )
}

/**
 * @internal
 * Without `initialize`, parameters that start at random hold nothing yet: each needs `Module.initialize` or a value before it is used.
 */
export async function createHandle(
  kind: string,
  config: object,
  { seed = 0, dtype = 'f32', device, ...call }: CreateOptions,
  initialize = true,
): Promise<NativeModel> {
  if (!Number.isSafeInteger(seed)) throw new DeemError('ERR_VALUE', `a seed must be a whole number but is ${seed}`)
  return run(() => native.createModel(kind, optionsJson(config), seed, dtype, device, initialize), call)
}

/** Picks an output by name; throws ERR_VALUE naming what there is. */
export function output(outputs: Record<string, Tensor>, name: string): Tensor {
  const t = outputs[name]
  if (!t) throw new DeemError('ERR_VALUE', `there is no output '${name}', there are ${Object.keys(outputs).join(', ')}`)
  return t
}

/** Kinds that {@link Module.create} knows. */
export function modelKinds(): string[] {
  return native.modelKinds()
}
