/** Jinja templates of strangers: rendered beside the program, in bounded time and memory. */
import { Worker } from 'node:worker_threads'
import { causedBy, DeemError } from '../errors.js'

/** @internal */
export interface JinjaJob {
  template: string
  variables: object
  longest: number
}
/** @internal */
export type JinjaReply = { text: string } | { error: string }

const seconds = 10
const megabytes = 128
const longest = 2 ** 20

/**
 * Renders a template. Throws ERR_FORMAT where it is none, throws itself, writes more than 2^20 characters, or needs more than 10
 * seconds or 128 MB. It runs in a thread of its own, so that nothing else waits for it or falls with it.
 */
export async function renderJinja(template: string, variables: object, signal?: AbortSignal): Promise<string> {
  signal?.throwIfAborted()
  const job: JinjaJob = { template, variables, longest }
  const worker = new Worker(new URL('./jinja-worker.js', import.meta.url), {
    workerData: job,
    resourceLimits: { maxOldGenerationSizeMb: megabytes, maxYoungGenerationSizeMb: 16, stackSizeMb: 4 },
    // Neither the options of the program nor its files are the template's.
    execArgv: [],
    env: {},
  })
  let stop: (() => void) | undefined
  let timer: NodeJS.Timeout | undefined
  try {
    const reply = await new Promise<JinjaReply>((resolve, reject) => {
      worker.once('message', resolve)
      worker.once('error', (error) => reject(causedBy(error, 'ERR_FORMAT', '[template] it cannot be rendered')))
      worker.once('exit', () => reject(new DeemError('ERR_FORMAT', '[template] it ended before it wrote anything')))
      worker.once('online', () => {
        const late = () => reject(new DeemError('ERR_FORMAT', `[template] it takes longer than ${seconds} seconds`))
        timer = setTimeout(late, seconds * 1000)
      })
      stop = () => reject(signal?.reason)
      signal?.addEventListener('abort', stop, { once: true })
    })
    if ('error' in reply) throw new DeemError('ERR_FORMAT', `[template] ${reply.error}`)
    return reply.text
  } finally {
    clearTimeout(timer)
    if (stop) signal?.removeEventListener('abort', stop)
    await worker.terminate()
  }
}
