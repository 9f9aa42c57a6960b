/** Jinja templates of strangers: rendered beside the program, in bounded time and memory. */
import type { ChildProcess } from 'node:child_process'
import { join } from 'node:path'
import { causedBy, DeemError } from '../errors.js'
import { packageRoot } from '../root.js'

/** @internal */
export interface JinjaJob {
  template: string
  variables: object
  longest: number
  seconds: number
}
/** @internal */
export type JinjaReply = { text: string } | { error: string }

const megabytes = 128
const longest = 2 ** 20
const program = join(packageRoot, 'dist/pipeline/jinja-child.js')

/**
 * Renders a template. Throws ERR_FORMAT where it is none, throws itself, writes more than 2^20 characters, or needs more than so many
 * seconds (default 5) or 128 MB of memory; ERR_IO where no process can be started. It runs in a process of its own: a thread that
 * allocates too much at once takes all others with it.
 */
export async function renderJinja(
  template: string,
  variables: object,
  { signal, seconds = 5 }: { signal?: AbortSignal | undefined; seconds?: number } = {},
): Promise<string> {
  signal?.throwIfAborted()
  const job: JinjaJob = { template, variables, longest, seconds }
  const child = await start()
  let stop: (() => void) | undefined
  let timer: NodeJS.Timeout | undefined
  try {
    signal?.throwIfAborted() // by now it may have been aborted
    const reply = await new Promise<JinjaReply>((resolve, reject) => {
      const fail = (message: string) => reject(new DeemError('ERR_FORMAT', `[template] ${message}`))
      child.once('message', (message) => resolve(message as JinjaReply))
      child.once('error', (error) => reject(causedBy(error, 'ERR_IO', '[template] no process for it can be started')))
      child.once('exit', () => fail(`it needs more than ${megabytes} MB of memory`))
      timer = setTimeout(() => fail(`it takes longer than ${seconds} seconds`), seconds * 1000)
      stop = () => reject(signal?.reason)
      signal?.addEventListener('abort', stop, { once: true })
      child.send(job, (error) => error && reject(causedBy(error, 'ERR_IO', '[template] its process cannot be reached')))
    })
    if ('error' in reply) throw new DeemError('ERR_FORMAT', `[template] ${reply.error}`)
    return reply.text
  } finally {
    clearTimeout(timer)
    if (stop) signal?.removeEventListener('abort', stop)
    child.kill('SIGKILL')
  }
}

async function start(): Promise<ChildProcess> {
  const { fork } = await import('node:child_process') // here: Node takes milliseconds to load it, and most programs need none
  try {
    return fork(program, {
      execArgv: [`--max-old-space-size=${megabytes}`],
      // Nothing of this process is the template's; Electron's binary has to be told that it is Node.
      env: { ELECTRON_RUN_AS_NODE: '1' },
      stdio: 'ignore',
    })
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', '[template] no process for it can be started')
  }
}
