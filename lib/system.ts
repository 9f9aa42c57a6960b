import { type Device, type DeviceReport, type MemoryReport, native } from './native.js'
import { type CallOptions, run } from './task.js'

export type { Device, DeviceReport, MemoryReport } from './native.js'

/** Whose memory is meant. */
export interface OnDevice {
  /** Default: {@link defaultDevice}. */
  device?: Device | undefined
}

/**
 * The CPU, and every GPU, or why there is none. GPUs need an NVIDIA driver and `libdeem_cuda.so` beside the addon (or where
 * `DEEM_CUDA_PLUGIN` says); `DEEM_CUDA_DEVICE` is the number of the one that `cuda` means, else 0.
 *
 * @example
 * ```ts
 * import { devices } from 'deem'
 *
 * for (const { device, name, usable, why } of devices()) console.log(device, usable ? name : why)
 * ```
 */
export function devices(): DeviceReport[] {
  return native.devices()
}
/**
 * Where models, and tensors of floating numbers, are made if nothing else is said: `cpu`, unless `DEEM_DEVICE` names another. Integers
 * (ids, positions, labels) are always made on the CPU, where models expect them.
 */
export function defaultDevice(): 'cpu' | 'cuda' {
  return native.defaultDevice()
}
/** Changes {@link defaultDevice} for the whole process. Throws ERR_DEVICE that says what is missing. */
export function setDefaultDevice(device: Device): void {
  native.setDefaultDevice(device)
}
/**
 * Waits for everything that was begun, on the GPU too, which works behind the calls that ask it to: without this, the time of a call
 * says little. Throws what went wrong there.
 */
export function synchronize(options?: CallOptions): Promise<void> {
  return run(() => native.synchronize(), options)
}

/** What the engine's allocator holds, in bytes. */
export function memory({ device }: OnDevice = {}): MemoryReport {
  return native.memory(device)
}
/** Starts a new peak at what is live now. */
export function resetPeakMemory({ device }: OnDevice = {}): void {
  native.resetPeakMemory(device)
}
/** Gives blocks kept for reuse back to the system. */
export function emptyCache({ device }: OnDevice = {}): void {
  native.emptyCache(device)
}
/**
 * A hard limit in bytes on what the engine takes from the system, or of a GPU's memory; 0 removes it. Beyond it: ERR_OUT_OF_MEMORY.
 *
 * @example
 * ```ts
 * import { DeemError, loadModel, setMemoryLimit } from 'deem'
 *
 * setMemoryLimit(4 * 2 ** 30)
 * try {
 *   using model = await loadModel('deem-7b/')
 * } catch (error) {
 *   if (!DeemError.isInstance(error) || error.code !== 'ERR_OUT_OF_MEMORY') throw error
 *   console.log('it needs more than 4 GiB')
 * }
 * ```
 */
export function setMemoryLimit(bytes: number, { device }: OnDevice = {}): void {
  native.setMemoryLimit(bytes, device)
}
/** Threads of the engine; default: the physical cores this process may use, or `DEEM_THREADS`. */
export function threads(): number {
  return native.threads()
}
export function setThreads(n: number): void {
  native.setThreads(n)
}
/** The instruction set the kernels run with: sse4, avx2, avx512 or avx512bf16 (`DEEM_ISA` lowers it). */
export function isa(): string {
  return native.isa()
}
