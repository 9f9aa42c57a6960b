import { DeemError } from './errors.js'
import { type DType, isDType, type NativeFile, native } from './native.js'
import { type CallOptions, run } from './task.js'
import { Tensor } from './tensor.js'
import { isTorchFile, readTorchLayout } from './weights/torch-zip.js'

export interface TensorFile {
  tensors: Record<string, Tensor>
  metadata: Record<string, string>
}

/** Reads every tensor of a safetensors file. Throws ERR_IO or ERR_FORMAT naming the file and what is wrong in it. */
export async function readTensors(path: string, options?: CallOptions): Promise<TensorFile> {
  return wrapped(await run(() => native.readTensors(path, false), options))
}

/**
 * The tensors of a weight file where they lie: mapped, read from disk when they are used, so that a file larger than memory can be
 * opened. Safetensors, and the zip archives of torch.save (`.bin`, `.pt`, `.pth`, `.ckpt`). The file must not be cut short while
 * they live. Throws ERR_IO or ERR_FORMAT naming the file and what is wrong, not allowed or not supported in it.
 */
export async function mapTensors(path: string, options?: CallOptions): Promise<TensorFile> {
  if (!isTorchFile(path)) return wrapped(await run(() => native.readTensors(path, true), options))
  const layout = (await readTorchLayout(path)).map((t) => {
    if (!isDType(t.dtype))
      throw new DeemError('ERR_DTYPE', `'${path}': '${t.name}' is ${t.dtype}, which is not supported`)
    return { ...t, dtype: t.dtype }
  })
  return wrapped(await run(() => native.mapTensors(path, layout), options))
}

function wrapped({ tensors, metadata }: NativeFile): TensorFile {
  return { tensors: Object.fromEntries(Object.entries(tensors).map(([name, h]) => [name, new Tensor(h)])), metadata }
}

/**
 * Writes tensors by name, atomically: a failure leaves the old file as it was. `dtype` is that of the floating tensors in the file,
 * by default each one's own; they are cast one at a time. Throws ERR_IO; ERR_VALUE for names
 * that no file can hold and for numbers beyond the range of the dtype.
 */
export function writeTensors(
  path: string,
  tensors: Record<string, Tensor>,
  { metadata = {}, dtype, ...options }: { metadata?: Record<string, string>; dtype?: DType } & CallOptions = {},
): Promise<void> {
  const handles = Object.fromEntries(Object.entries(tensors).map(([name, t]) => [name, t.handle]))
  return run(() => native.writeTensors(path, handles, metadata, dtype ?? ''), options)
}
