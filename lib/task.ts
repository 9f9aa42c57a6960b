import type { NativeTask } from './native.js'

export interface CallOptions {
  /** Aborts the call: it stops within one operation and rejects with `signal.reason`. */
  signal?: AbortSignal | undefined
  /**
   * Told at most 20 times a second how far a long call is, in whatever steps it counts: generated tokens, denoising steps, tensors of a
   * file. Never called after the promise is settled. What it throws aborts the call, which rejects with it.
   */
  onProgress?: ((done: number, total: number) => void) | undefined
}

const interval = 50 // milliseconds

/** @internal Progress of calls that consist of many, told as often as that of one. */
export function throttled(onProgress: CallOptions['onProgress']): (done: number, total: number) => void {
  let last = performance.now()
  return (done, total) => {
    const now = performance.now()
    if (now - last < interval) return
    last = now
    onProgress?.(done, total)
  }
}

/** Starts native work and waits for it; an abort before the start does nothing at all. */
export async function run<T>(start: () => NativeTask<T>, { signal, onProgress }: CallOptions = {}): Promise<T> {
  signal?.throwIfAborted()
  const task = start()
  const onAbort = () => task.abort()
  signal?.addEventListener('abort', onAbort, { once: true })
  let failed: { error: unknown } | undefined
  const tell = (done: number, total: number) => {
    try {
      onProgress?.(done, total)
    } catch (error) {
      failed = { error }
      clearInterval(timer)
      task.abort()
    }
  }
  const timer = onProgress && setInterval(watch(task, tell), interval)
  try {
    const result = await task.promise
    if (failed) throw failed.error
    return result
  } catch (error) {
    if (failed) throw failed.error
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
