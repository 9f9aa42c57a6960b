import type { NativeTask } from './native.js'

export interface CallOptions {
  /** Aborts the call: it stops within one operation and rejects with `signal.reason`. */
  signal?: AbortSignal
}

/** Starts native work and waits for it; an abort before the start does nothing at all. */
export async function run<T>(start: () => NativeTask<T>, { signal }: CallOptions = {}): Promise<T> {
  signal?.throwIfAborted()
  const task = start()
  const onAbort = () => task.abort()
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    return await task.promise
  } catch (error) {
    throw signal?.aborted ? signal.reason : error
  } finally {
    signal?.removeEventListener('abort', onAbort)
  }
}
