import { native } from './native.js'
import { type CallOptions, run } from './task.js'
import { Tensor } from './tensor.js'

/** Reads every tensor of a safetensors file. Throws ERR_IO or ERR_FORMAT naming the file and what is wrong in it. */
export async function readTensors(
  path: string,
  options?: CallOptions,
): Promise<{ tensors: Record<string, Tensor>; metadata: Record<string, string> }> {
  const { tensors, metadata } = await run(() => native.readTensors(path), options)
  return { tensors: Object.fromEntries(Object.entries(tensors).map(([name, h]) => [name, new Tensor(h)])), metadata }
}

/** Writes tensors by name, atomically: a failure leaves the old file as it was. */
export function writeTensors(
  path: string,
  tensors: Record<string, Tensor>,
  { metadata = {}, ...options }: { metadata?: Record<string, string> } & CallOptions = {},
): Promise<void> {
  const handles = Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, t.handle]))
  return run(() => native.writeTensors(path, handles, metadata), options)
}
