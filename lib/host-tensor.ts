import { DeemError } from './errors.js'

/** Element types data arrives in, and the array that holds each. */
export interface HostArrays {
  f32: Float32Array
  i64: BigInt64Array
  u8: Uint8Array
}
export type HostDType = keyof HostArrays

/** A plain array with a shape, row-major: what data code makes and the engine copies in. Images are `[N, H, W, C]`. */
export interface HostTensor<D extends HostDType = HostDType> {
  shape: number[]
  dtype: D
  data: HostArrays[D]
}

/** Wraps `data`, checked against `shape`. */
export function hostTensor(data: Float32Array, shape: readonly number[]): HostTensor<'f32'>
export function hostTensor(data: BigInt64Array, shape: readonly number[]): HostTensor<'i64'>
export function hostTensor(data: Uint8Array, shape: readonly number[]): HostTensor<'u8'>
export function hostTensor(data: Float32Array | BigInt64Array | Uint8Array, shape: readonly number[]): HostTensor {
  const size = shape.reduce((a, b) => a * b, 1)
  if (size !== data.length) {
    throw new DeemError('ERR_SHAPE', `[hostTensor] shape [${shape}] needs ${size} elements but got ${data.length}`)
  }
  const dtype = data instanceof Float32Array ? 'f32' : data instanceof BigInt64Array ? 'i64' : 'u8'
  return { shape: [...shape], dtype, data }
}

/** Integers as an i64 tensor; one dimension unless a shape is given. */
export function i64(values: ArrayLike<number>, shape: readonly number[] = [values.length]): HostTensor<'i64'> {
  const data = new BigInt64Array(values.length)
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number
    if (!Number.isSafeInteger(value))
      throw new DeemError('ERR_VALUE', `[i64] values must be integers but got ${value} at ${i}`)
    data[i] = BigInt(value)
  }
  return hostTensor(data, shape)
}

/** Numbers as an f32 tensor. */
export function f32(values: ArrayLike<number>, shape: readonly number[] = [values.length]): HostTensor<'f32'> {
  return hostTensor(values instanceof Float32Array ? values : Float32Array.from(values), shape)
}

/** Tensors of one shape and dtype f32 along a new first axis. */
export function stack(tensors: readonly HostTensor<'f32'>[]): HostTensor<'f32'> {
  const first = tensors[0]
  if (first === undefined) throw new DeemError('ERR_SHAPE', '[stack] needs at least one tensor but got none')
  const out = new Float32Array(tensors.length * first.data.length)
  tensors.forEach((tensor, i) => {
    if (String(tensor.shape) !== String(first.shape)) {
      throw new DeemError('ERR_SHAPE', `[stack] shapes must be equal but got [${first.shape}] and [${tensor.shape}]`)
    }
    out.set(tensor.data, i * first.data.length)
  })
  return hostTensor(out, [tensors.length, ...first.shape])
}
