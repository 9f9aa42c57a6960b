/** HTTP as the hub needs it: bounded waits, retries, and files that outlive a broken connection. */
import { createHash, type Hash, randomUUID } from 'node:crypto'
import { type FileHandle, open, readdir, rename, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { causedBy, DeemError } from '../errors.js'

/** Milliseconds without a byte after which a connection counts as broken. */
const patience = 30_000
/** Attempts in a row of which none brought anything. */
const mostAttempts = 5
/** Milliseconds before the second attempt; doubled for each further one. */
const firstWait = 300
const longestWait = 30_000
/** Milliseconds after which a partial file that nobody wrote to has lost its owner: longer than any wait above. */
const abandonedAfter = 4 * patience

interface Passing {
  cause?: unknown
  /** Whether no server was reached at all. */
  unreachable?: boolean
  /** Milliseconds the server asks to wait. */
  wait?: number | undefined
}

/** A failure that may pass by itself. */
export class PassingError extends DeemError {
  readonly passing: Passing

  constructor(message: string, passing: Passing = {}) {
    super('ERR_IO', message, 'cause' in passing ? { cause: passing.cause } : {})
    this.passing = passing
  }
}

export interface Asking {
  /** Names the model and the file in errors. */
  what: string
  headers: Record<string, string>
  signal?: AbortSignal | undefined
}

/** An answer whose body is read once, if at all. Disposing it closes the connection where that is not at its end. */
export class Answer implements Disposable {
  readonly #response: Response
  readonly #asked: Asking
  readonly #watch: Watch

  constructor(response: Response, asked: Asking, watch: Watch) {
    this.#response = response
    this.#asked = asked
    this.#watch = watch
  }

  get status(): number {
    return this.#response.status
  }

  get headers(): Headers {
    return this.#response.headers
  }

  async *chunks(): AsyncGenerator<Uint8Array> {
    const reader = this.#response.body?.getReader()
    try {
      for (;;) {
        const part = await this.#watch.over(this.#asked, async () => reader?.read())
        if (!part || part.done) return
        yield part.value
      }
    } finally {
      reader?.cancel().catch(() => undefined) // whatever ended it has been thrown
    }
  }

  /** The whole body. Throws ERR_FORMAT where it is longer than `most` bytes. */
  async bytes(most: number): Promise<Buffer> {
    const parts: Uint8Array[] = []
    let size = 0
    for await (const part of this.chunks()) {
      size += part.length
      if (size > most) throw new DeemError('ERR_FORMAT', `${this.#asked.what}: the answer is longer than ${most} bytes`)
      parts.push(part)
    }
    return Buffer.concat(parts)
  }

  [Symbol.dispose](): void {
    this.#watch.end()
    unread(this.#response)
  }
}

/** Closes the connection of an answer whose body nobody reads. */
function unread({ body }: Response): void {
  if (body && !body.locked) body.cancel().catch(() => undefined) // broken already
}

/** Ends a request that was silent for too long. */
class Watch {
  readonly #stop = new AbortController()
  #timer: NodeJS.Timeout | undefined

  /** Waits for one thing of the network. What ends it is listened to here, so that an abort does not depend on fetch settling its promise. */
  async over<T>({ what, signal }: Asking, wait: () => Promise<T>): Promise<T> {
    signal?.throwIfAborted()
    const over = new AbortController()
    const ended = new Promise<never>((_, fail) => {
      for (const s of [signal, this.#stop.signal])
        s?.addEventListener('abort', () => fail(s.reason), { signal: over.signal })
    })
    this.#timer = setTimeout(() => this.#stop.abort(new Error(`silent for ${patience / 1000} s`)), patience)
    try {
      return await Promise.race([wait(), ended])
    } catch (error) {
      signal?.throwIfAborted()
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
      const code = String((cause as NodeJS.ErrnoException).code)
      const unreachable = ['ENOTFOUND', 'EAI_AGAIN', 'ECONNREFUSED', 'ENETUNREACH', 'EHOSTUNREACH'].includes(code)
      const says = cause instanceof Error && cause.message !== '' ? cause.message : code
      throw new PassingError(`${what}: the connection failed: ${says}`, { unreachable, cause: error })
    } finally {
      clearTimeout(this.#timer)
      over.abort()
    }
  }

  signal(user: AbortSignal | undefined): AbortSignal {
    return user ? AbortSignal.any([user, this.#stop.signal]) : this.#stop.signal
  }

  end(): void {
    clearTimeout(this.#timer)
    this.#stop.abort()
  }
}

/**
 * One request. Redirects are followed; what authorises goes to the first host only, as fetch has it. Throws {@link PassingError} for what
 * may pass (no network, silence, 408, 429, 5xx), ERR_IO for other answers than 2xx and those of `accepted`.
 */
export async function ask(url: string, asked: Asking, accepted: readonly number[] = []): Promise<Answer> {
  const { what, headers, signal } = asked
  signal?.throwIfAborted()
  const watch = new Watch()
  try {
    const response = await watch.over(asked, () => fetch(url, { headers, signal: watch.signal(signal) }))
    if (!response.ok && !accepted.includes(response.status)) {
      unread(response)
      throw refusal(response, what)
    }
    return new Answer(response, asked, watch)
  } catch (error) {
    watch.end()
    throw error
  }
}

function refusal({ status, headers }: Response, what: string): DeemError {
  if (status === 408 || status === 429 || status >= 500) {
    const seconds = Number(headers.get('retry-after') ?? Number.NaN)
    const wait = seconds >= 0 ? Math.min(1000 * seconds, longestWait) : undefined
    return new PassingError(`${what}: the hub answers ${status}`, { wait })
  }
  const missing = headers.get('x-error-code') === 'RevisionNotFound' ? 'has no such revision' : 'does not have it'
  const why: Record<number, string> = {
    401: 'it is private or does not exist, and the token (hub.token or HF_TOKEN), if any, does not open it',
    403: 'the token (hub.token or HF_TOKEN), if any, may not read it; a gated model must be asked for on its page first',
    404: `the hub ${missing}`,
  }
  return new DeemError('ERR_IO', `${what}: ${why[status] ?? 'the hub refuses'} (${status})`)
}

interface Retrying {
  signal?: AbortSignal | undefined
  /** Whether to wait for a network, too. */
  patient?: boolean
  /** Whether the last attempt brought anything, so that attempts are counted anew. */
  gained?: () => boolean
}

/** Repeats what fails with a {@link PassingError}, a few times, after ever longer waits. */
export async function retrying<T>(attempt: () => Promise<T>, how: Retrying): Promise<T> {
  const { signal, patient = false, gained } = how
  for (let tries = 1; ; tries++) {
    try {
      return await attempt()
    } catch (error) {
      if (!(error instanceof PassingError) || (error.passing.unreachable && !patient)) throw error
      if (gained?.()) tries = 1
      if (tries >= mostAttempts) throw error
      const wait = error.passing.wait ?? Math.min(firstWait * 2 ** (tries - 1), longestWait)
      await sleep(wait, undefined, signal && { signal }).catch((interrupted: unknown) => {
        signal?.throwIfAborted()
        throw interrupted
      })
    }
  }
}

/** Bytes. */
const syncEvery = 64 << 20

/** A file of the hub. */
export interface HubFile {
  /** Below the root of the model, with slashes. */
  path: string
  size: number
  /** Its SHA-256 where `large`, else the SHA-1 of its git object; the name of its blob in the cache, too. */
  digest: string
  large: boolean
}

/**
 * Brings `blobs/DIGEST` about. What an earlier call got before it broke off is gone on with; two processes at once work on files of their
 * own. `tell` gets every change of the number of bytes that are there.
 *
 * Throws ERR_IO; ERR_FORMAT where the bytes are not those of the digest, which are then deleted.
 */
export async function download(
  file: HubFile,
  url: string,
  blobs: string,
  asked: Asking,
  tell: (change: number) => void,
): Promise<void> {
  const blob = join(blobs, file.digest)
  const idle = `${blob}.idle.deem`
  const disk = <T>(action: Promise<T>) => onDisk(asked.what, action)
  const own = await disk(claim(blobs, file.digest))
  try {
    const handle = await disk(open(own, 'r+'))
    try {
      await fill(handle, file, url, asked, tell)
      await disk(handle.datasync())
    } finally {
      await handle.close()
    }
    await disk(rename(own, blob))
  } catch (error) {
    const worthless = DeemError.isInstance(error) && error.code === 'ERR_FORMAT'
    await disk(worthless ? rm(own, { force: true }) : rename(own, idle))
    throw error
  }
  await disk(rm(idle, { force: true }))
}

/** A partial file for this call alone: a new one, or one that was left behind. Its name says which; renaming decides between two takers. */
async function claim(blobs: string, digest: string): Promise<string> {
  const own = join(blobs, `${digest}.${randomUUID()}.deem`)
  for (const name of await readdir(blobs)) {
    if (!name.startsWith(`${digest}.`) || !name.endsWith('.deem')) continue
    const left = join(blobs, name)
    try {
      const now = new Date()
      if (name !== `${digest}.idle.deem` && now.getTime() - (await stat(left)).mtimeMs < abandonedAfter) continue
      await utimes(left, now, now) // before it changes hands: the next taker must see a living one
      await rename(left, own)
      return own
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error // somebody else was faster
    }
  }
  await (await open(own, 'wx')).close()
  return own
}

async function fill(
  handle: FileHandle,
  file: HubFile,
  url: string,
  asked: Asking,
  tell: (change: number) => void,
): Promise<void> {
  const { what, signal } = asked
  const disk = <T>(action: Promise<T>) => onDisk(what, action)
  let at = 0
  let hash = hashOf(file)
  let answers = 0
  const take = (bytes: Uint8Array) => {
    hash.update(bytes)
    at += bytes.length
    tell(bytes.length)
  }
  const restart = async () => {
    tell(-at)
    at = 0
    answers = 0
    hash = hashOf(file)
    await disk(handle.truncate(0))
  }

  if ((await disk(handle.stat())).size > file.size) await disk(handle.truncate(0))
  const buffer = Buffer.alloc(1 << 20)
  for (;;) {
    signal?.throwIfAborted()
    const { bytesRead } = await disk(handle.read(buffer, 0, buffer.length, at))
    if (bytesRead === 0) break
    take(buffer.subarray(0, bytesRead))
    answers = 1
    if (at % (256 << 20) === 0) await disk(handle.utimes(new Date(), new Date())) // it takes a while, and is not abandoned
  }

  const attempt = async () => {
    const range = at > 0 ? { range: `bytes=${at}-` } : undefined
    // Compressed on the way, a part of it could not be asked for.
    const headers = { ...asked.headers, 'accept-encoding': 'identity', ...range }
    using answer = await ask(url, { ...asked, headers }, range && [416])
    if (range && !continues(answer, at)) {
      await restart()
      if (answer.status !== 200) throw new PassingError(`${what}: the hub does not go on where it is asked to`)
    }
    answers++
    for await (const chunk of answer.chunks()) {
      if (at + chunk.length > file.size)
        throw new DeemError('ERR_FORMAT', `${what}: the hub sends more than the ${file.size} bytes it promised`)
      for (let done = 0; done < chunk.length; )
        done += (await disk(handle.write(chunk, done, chunk.length - done, at + done))).bytesWritten
      take(chunk)
      // Now and then, since an abort cannot interrupt the last one.
      if (Math.floor(at / syncEvery) !== Math.floor((at - chunk.length) / syncEvery)) await disk(handle.datasync())
    }
    if (at < file.size) throw new PassingError(`${what}: the connection ended after ${at} of ${file.size} bytes`)
  }
  for (;;) {
    let before = at
    const gained = () => {
      const much = at - before >= 1 << 20
      before = at
      return much
    }
    if (at < file.size) await retrying(attempt, { signal, patient: true, gained })
    const digest = hash.digest('hex')
    if (digest === file.digest) return
    const kind = file.large ? 'SHA-256' : 'git SHA-1'
    if (answers <= 1)
      throw new DeemError('ERR_FORMAT', `${what}: the ${kind} is ${digest} but must be ${file.digest}; it is not kept`)
    await restart() // what was put together from several answers gets one more chance
  }
}

/** Whether the body is what follows the first `at` bytes. */
function continues({ status, headers }: Answer, at: number): boolean {
  return status === 206 && new RegExp(`^bytes ${at}-`).test(headers.get('content-range') ?? '')
}

function hashOf({ large, size }: HubFile): Hash {
  return large ? createHash('sha256') : createHash('sha1').update(`blob ${size}\0`)
}

async function onDisk<T>(what: string, action: Promise<T>): Promise<T> {
  try {
    return await action
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `${what} cannot be kept in the cache`)
  }
}
