import { type MemoryReport, native } from './native.js'

export type { MemoryReport } from './native.js'

/** What the engine's allocator holds, in bytes. */
export function memory(): MemoryReport {
  return native.memory()
}
/** Starts a new peak at what is live now. */
export function resetPeakMemory(): void {
  native.resetPeakMemory()
}
/** Gives blocks kept for reuse back to the system. */
export function emptyCache(): void {
  native.emptyCache()
}
/**
 * A hard limit in bytes on what the engine takes from the system; 0 removes it. Beyond it: ERR_OUT_OF_MEMORY.
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
export function setMemoryLimit(bytes: number): void {
  native.setMemoryLimit(bytes)
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
