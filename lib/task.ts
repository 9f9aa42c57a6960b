import type { NativeTask } from './native.js'

export interface CallOptions {
  /** Aborts the call: it stops within one operation and rejects with `signal.reason`. */
  signal?: AbortSignal
  /**
   * Told at most 20 times a second how far a long call is, in whatever steps it counts: generated tokens, denoising steps, tensors of a
   * file. Never called after the promise is settled.
   */
  onProgress?: (done: number, total: number) => void
}

const interval = 50 // milliseconds

/** Starts native work and waits for it; an abort before the start does nothing at all. */
export async function run<T>(start: () => NativeTask<T>, { signal, onProgress }: CallOptions = {}): Promise<T> {
  signal?.throwIfAborted()
  const task = start()
  const onAbort = () => task.abort()
  signal?.addEventListener('abort', onAbort, { once: true })
  const timer = onProgress && setInterval(watch(task, onProgress), interval)
  try {
    return await task.promise
  } catch (error) {
    throw signal?.aborted ? signal.reason : error
  } finally {
    clearInterval(timer)
    signal?.removeEventListener('abort', onAbort)
  }
}

/** Reports a task's progress whenever it moved. */
function watch(task: NativeTask<unknown>, tell: (done: number, total: number) => void): () => void {
  let last = 0
  return () => {
    const [done, total] = task.progress()
    if (done === last) return
    last = done
    tell(done, total)
  }
}
