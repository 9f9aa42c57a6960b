import { DeemError } from './errors.js'
import { type Device, type DType, type NativeTensor, native, type TypedArray } from './native.js'
import { track } from './scope.js'
import { type CallOptions, run } from './task.js'

export type { DType, TypedArray } from './native.js'

/** @internal Bytes of an element. */
export const elementBytes: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i64: 8, i32: 4, u8: 1 }

/** Numbers in nested lists, the outermost axis first. */
export type Nested = number | bigint | boolean | readonly Nested[]

/**
 * A handle to an array in the engine's memory. Feature maps are `[N, H, W, C]`, tokens are rows.
 *
 * The memory is freed by {@link dispose}, by `using`, by a {@link Scope}, or at the latest by the garbage collector, which
 * runs only when the event loop turns: loops that make many tensors need one of the first three.
 */
export class Tensor implements Disposable {
  /** @internal */
  readonly handle: NativeTensor

  /** @internal Made by {@link tensor} and by operations. */
  constructor(handle: NativeTensor) {
    this.handle = handle
    track(this)
  }

  get shape(): number[] {
    return this.handle.shape
  }
  get dtype(): DType {
    return this.handle.dtype
  }
  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1)
  }
  get device(): 'cpu' | 'cuda' {
    return this.handle.device
  }
  /** Whether it carries a graph or is a leaf that wants a gradient. */
  get tracked(): boolean {
    return this.handle.tracked
  }
  get requiresGrad(): boolean {
    return this.handle.requiresGrad
  }
  /** Leaves only: whether {@link backward} leaves a gradient in {@link grad}. */
  set requiresGrad(on: boolean) {
    this.handle.setRequiresGrad(on)
  }
  get disposed(): boolean {
    return this.handle.disposed
  }

  /** A copy of the elements, row-major: Float32Array for f32, BigInt64Array for i64, raw bits as Uint16Array for bf16 and f16. */
  read(): TypedArray {
    return this.handle.read()
  }
  /** The same without waiting for the engine: {@link read} blocks the event loop while a long call runs. */
  data(options?: CallOptions): Promise<TypedArray> {
    return run(() => this.handle.data(), options)
  }
  /** The elements as numbers, whatever the dtype. */
  toFloat32(): Float32Array {
    const data = this.read()
    if (data instanceof Float32Array) return data
    if (data instanceof Uint16Array) {
      const wide = native.ops['cast']?.(this.handle.detach(), 'f32') as NativeTensor
      const out = wide.read() as Float32Array
      wide.dispose()
      return out
    }
    return Float32Array.from(data as ArrayLike<number | bigint>, Number)
  }
  /** The only element; throws ERR_SHAPE for more. */
  item(): number {
    return this.handle.item()
  }
  /** The gathered gradient of a leaf, or null. Of the leaf's dtype; f32 where it was added up from several parts. */
  get grad(): Tensor | null {
    const g = this.handle.grad()
    return g && new Tensor(g)
  }
  clearGrad(): void {
    this.handle.clearGrad()
  }
  /**
   * Itself on another device: a copy with a graph back to this one, or the same memory where it is there already. Reading needs none:
   * {@link read}, {@link data} and {@link item} fetch from anywhere. Throws ERR_DEVICE that says what is missing.
   */
  to(device: Device): Tensor {
    return new Tensor(native.ops['toDevice']?.(this.handle, device) as NativeTensor)
  }
  /** The same memory without history. */
  detach(): Tensor {
    return new Tensor(this.handle.detach())
  }
  /** Gradients of this scalar (or of `sum(this * gradient)`) into every leaf below. Frees the graph. */
  backward(gradient?: Tensor, options?: CallOptions): Promise<void> {
    return backward([this], gradient && [gradient], options)
  }

  /** Gives the memory back; tasks that use the tensor keep their own hold. Idempotent. */
  dispose(): void {
    this.handle.dispose()
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** Gradients of `sum_i sum(tensors[i] * gradients[i])` into every leaf below; absent gradients mean one, for scalars. */
export function backward(
  tensors: readonly Tensor[],
  gradients?: readonly Tensor[],
  options?: CallOptions,
): Promise<void> {
  return run(
    () =>
      native.backward(
        tensors.map((t) => t.handle),
        gradients ? gradients.map((g) => g.handle) : null,
      ),
    options,
  )
}

export interface TensorOptions {
  /** Default: `cpu` for integers, `defaultDevice()` for floating numbers. */
  device?: Device | undefined
}

/**
 * Makes a tensor from a typed array and a shape, or from nested arrays of numbers.
 * The dtype follows the typed array (f32, i64, i32, u8); numbers become f32 unless said otherwise. The data is copied.
 *
 * @example
 * ```ts
 * import { backward, ops, tensor } from 'deem'
 *
 * using x = tensor([[1, 2, 3], [4, 5, 6]])
 * x.requiresGrad = true
 * using y = ops.sum(ops.mul(x, x), [0, 1], false)
 * await backward([y])
 * console.log(x.grad?.toFloat32()) // 2 x
 * ```
 */
export function tensor(
  data: TypedArray | Nested,
  shape?: readonly number[],
  dtype?: DType,
  { device }: TensorOptions = {},
): Tensor {
  if (ArrayBuffer.isView(data)) {
    const array = data as TypedArray
    return new Tensor(native.tensor(array, shape ?? [array.length], dtype ?? dtypeOf(array), device))
  }
  const inferred = shapeOf(data as Nested)
  const flat = flatten(data as Nested)
  const type = dtype ?? 'f32'
  if (type === 'bf16' || type === 'f16') {
    const wide = native.tensor(Float32Array.from(flat, Number), shape ?? inferred, 'f32', device)
    const narrow = native.ops['cast']?.(wide, type) as NativeTensor
    wide.dispose()
    return new Tensor(narrow)
  }
  const array =
    type === 'i64'
      ? BigInt64Array.from(flat, (v) => BigInt(v))
      : type === 'i32'
        ? Int32Array.from(flat, Number)
        : type === 'u8'
          ? Uint8Array.from(flat, Number)
          : Float32Array.from(flat, Number)
  return new Tensor(native.tensor(array, shape ?? inferred, type, device))
}

function dtypeOf(array: TypedArray): DType {
  if (array instanceof Float32Array) return 'f32'
  if (array instanceof BigInt64Array) return 'i64'
  if (array instanceof Int32Array) return 'i32'
  if (array instanceof Uint8Array) return 'u8'
  throw new DeemError('ERR_DTYPE', '[tensor] say whether the 16-bit values are bf16 or f16, or use another typed array')
}

function flatten(data: Nested, into: (number | bigint | boolean)[] = []): (number | bigint | boolean)[] {
  if (typeof data === 'object') for (const row of data) flatten(row, into)
  else into.push(data)
  return into
}

function shapeOf(data: Nested): number[] {
  if (!Array.isArray(data)) return []
  const inner = data.length > 0 ? shapeOf(data[0] as Nested) : []
  for (const row of data as readonly Nested[]) {
    const s = shapeOf(row)
    if (s.length !== inner.length || s.some((v, i) => v !== inner[i]))
      throw new DeemError('ERR_SHAPE', '[tensor] nested arrays must be rectangular')
  }
  return [data.length, ...inner]
}
