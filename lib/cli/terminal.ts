/** What commands that take long need: Ctrl-C, and a line that says how far they are. */
import type { CallOptions } from '../task.js'
import { megabytes } from './inspect.js'

/** Ctrl-C ends the work under way, a second one the process. */
export async function interruptible<T>(run: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController()
  const interrupt = () => stop.abort(new Error('interrupted'))
  process.once('SIGINT', interrupt)
  try {
    return await run(stop.signal)
  } catch (error) {
    if (stop.signal.aborted) process.exit(130)
    throw error
  } finally {
    process.off('SIGINT', interrupt)
  }
}

/** A line on standard error that is written over; none where nobody looks, or a program does. */
export class StatusLine implements Disposable {
  readonly #shown: boolean

  constructor(json = false) {
    this.#shown = process.stderr.isTTY === true && !json
  }

  /** `loading 40 %` */
  percent(what: string): CallOptions['onProgress'] {
    return this.#telling((done, total) => `${what} ${Math.round((100 * done) / total)} %`)
  }

  /** `fetching 40.0 MB of 100.0 MB` */
  bytes(what: string): CallOptions['onProgress'] {
    return this.#telling((done, total) => `${what} ${megabytes(done)} of ${megabytes(total)}`)
  }

  #telling(text: (done: number, total: number) => string): CallOptions['onProgress'] {
    return this.#shown ? (done, total) => process.stderr.write(`\r\x1b[K${text(done, total)}`) : undefined
  }

  [Symbol.dispose](): void {
    if (this.#shown) process.stderr.write('\r\x1b[K')
  }
}
