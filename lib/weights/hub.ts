/** Models of the Hugging Face hub: what they hold, and their files in the cache that Python's huggingface_hub shares. */
import { randomUUID } from 'node:crypto'
import { copyFile, mkdir, readdir, readFile, rename, stat, symlink, writeFile } from 'node:fs/promises'
import { dirname, join, relative, sep } from 'node:path'
import { lazySchema, parseConfig } from '../config.js'
import { causedBy, DeemError } from '../errors.js'
import { type CallOptions, throttled } from '../task.js'
import { type Asking, ask, download, type HubFile, PassingError, retrying } from './download.js'

/** Where and how models of the hub are fetched. What is left out comes from the environment that Hugging Face's libraries know. */
export interface HubOptions {
  /** Default HF_ENDPOINT, else https://huggingface.co. */
  endpoint?: string | undefined
  /** Default HF_HUB_CACHE, else `hub` in HF_HOME, else ~/.cache/huggingface/hub. */
  cacheDir?: string | undefined
  /** Default HF_TOKEN, else none. */
  token?: string | undefined
  /** Branch, tag or commit of ids that name none. Default `main`. */
  revision?: string | undefined
  /** Whether to take what the cache has and to ask nobody. Default HF_HUB_OFFLINE, else false. */
  offline?: boolean | undefined
  /** Told how many bytes are there of all the files that the cache lacks. Called like the other of {@link CallOptions}. */
  onProgress?: CallOptions['onProgress']
}

const hubKeys = lazySchema((z) =>
  z.strictObject({
    endpoint: z.url({ protocol: /^https?$/ }).optional(),
    cacheDir: z.string().min(1).optional(),
    token: z
      .string()
      .regex(/^[\x21-\x7e]+$/)
      .optional(), // what a header may hold
    revision: z.string().optional(),
    offline: z.boolean().optional(),
    onProgress: z.custom<CallOptions['onProgress']>((f) => f === undefined || typeof f === 'function').optional(),
  }),
)

export interface HubId {
  /** `org/name` */
  name: string
  revision?: string
}

/** A model at one commit. */
export interface HubRepo {
  /** For messages. */
  what: string
  /** Where its files lie once they are fetched. */
  folder: string
  /** Of all its files, with slashes. */
  names: readonly string[]
  /** Throws ERR_FORMAT where the hub's description of it cannot be. */
  file(path: string): HubFile
  /** Fetches one file. Nothing happens where it is there. */
  fetch(file: HubFile, signal: AbortSignal | undefined, tell: (change: number) => void): Promise<void>
  has(file: HubFile): Promise<boolean>
  /** Lets later calls find the commit by its branch, also without a network. */
  remember(): Promise<void>
}

/** Bytes of an answer that describes something. */
const maxAnswer = 32 << 20
/** Bytes of a file that is no weights. */
const maxSmall = 64 << 20
const maxNames = 100_000
const maxPages = 1000
const commitHash = /^[0-9a-f]{40}$/

/**
 * Asks the hub what a model holds; without a network, or where the hub fails, the cache. Throws ERR_IO where neither has it, ERR_FORMAT
 * for answers that make no sense, ERR_CONFIG for options that do not, ERR_VALUE for revisions that are none.
 */
export async function openRepo(id: HubId, options: HubOptions = {}, signal?: AbortSignal): Promise<HubRepo> {
  // Here, since it takes 80 ms to load and most programs read folders.
  const hub = await import('@huggingface/hub')
  const given = parseConfig(hubKeys, options, 'hub')
  const revision = id.revision ?? given.revision ?? 'main'
  if (!/^\w[\w.-]*(?:\/\w[\w.-]*)*$/.test(revision) || revision.includes('..') || revision.length > 200)
    throw new DeemError('ERR_VALUE', `'${revision}' is no branch, tag or commit`)
  const repo = { type: 'model', name: id.name } as const
  const root = join(given.cacheDir ?? hub.getHFHubCachePath(), hub.getRepoFolderName(repo))
  const what = `'${id.name}@${revision}'`
  const offline = given.offline ?? /^(?:1|on|yes|true)$/i.test(process.env['HF_HUB_OFFLINE'] ?? '')
  if (offline) return fromCache(root, revision, new DeemError('ERR_IO', `${what}: the hub is not to be asked`))

  const endpoint = (given.endpoint ?? (process.env['HF_ENDPOINT'] || 'https://huggingface.co')).replace(/\/+$/, '')
  const token = given.token ?? (process.env['HF_TOKEN'] || undefined)
  const headers: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` }
  const asked: Asking = { what, headers, signal }
  let pages = 0
  /** `fetch` for the hub's own client, which looks at nothing but the body and the link to the next page. */
  const guarded = async (input: Parameters<typeof fetch>[0]): Promise<Response> => {
    const url = String(input)
    if (new URL(url).origin !== new URL(endpoint).origin || pages++ > maxPages)
      throw new DeemError('ERR_FORMAT', `${what}: the list of files goes on at ${url}`)
    return retrying(
      async () => {
        using answer = await ask(url, { ...asked, headers: { ...headers, accept: 'application/json' } })
        const link = answer.headers.get('link')
        return new Response(new Uint8Array(await answer.bytes(maxAnswer)), { headers: link === null ? {} : { link } })
      },
      { signal },
    )
  }
  const client = { hubUrl: endpoint, fetch: guarded }
  try {
    const commit = commitHash.test(revision)
      ? revision
      : (await hub.modelInfo({ name: id.name, revision, additionalFields: ['sha'], ...client })).sha
    if (typeof commit !== 'string' || !commitHash.test(commit))
      throw new DeemError('ERR_FORMAT', `${what}: the hub names the commit ${JSON.stringify(commit)}`)
    const entries = new Map<string, unknown>()
    for await (const entry of hub.listFiles({ repo, revision: commit, recursive: true, ...client })) {
      if (entry.type === 'file') entries.set(String(entry.path), entry)
      if (entries.size > maxNames) throw new DeemError('ERR_FORMAT', `${what} holds more than ${maxNames} files`)
    }
    const base = `${endpoint}/${id.name}/resolve/${commit}`
    return new Remote({ what, root, revision, commit, base, headers }, entries)
  } catch (error) {
    signal?.throwIfAborted()
    if (error instanceof PassingError) return fromCache(root, revision, error)
    if (DeemError.isInstance(error)) throw error
    throw causedBy(error, 'ERR_FORMAT', `${what}: the hub's answer makes no sense`)
  }
}

interface Place {
  what: string
  /** Of the model in the cache. */
  root: string
  revision: string
  commit: string
  /** URL below which the files lie. */
  base: string
  headers: Record<string, string>
}

const entryKeys = lazySchema((z) =>
  z.object({
    path: z.string(),
    size: z.int().nonnegative(),
    oid: z.string().regex(commitHash).optional(),
    lfs: z.object({ oid: z.string().regex(/^[0-9a-f]{64}$/), size: z.int().nonnegative() }).optional(),
    xetHash: z.string().optional(),
  }),
)

class Remote implements HubRepo {
  readonly #place: Place
  readonly #entries: ReadonlyMap<string, unknown>
  readonly folder: string

  constructor(place: Place, entries: ReadonlyMap<string, unknown>) {
    this.#place = place
    this.#entries = entries
    this.folder = join(place.root, 'snapshots', place.commit)
  }

  get what(): string {
    return this.#place.what
  }

  get names(): string[] {
    return [...this.#entries.keys()]
  }

  file(path: string): HubFile {
    // Callers name files they know; this is the last door before the file system.
    if (!/^\w[\w.+-]*(?:\/\w[\w.+-]*)*$/.test(path))
      throw new DeemError('ERR_FORMAT', `${this.what}: ${JSON.stringify(path)} is no file to fetch`)
    const { success, data } = entryKeys().safeParse(this.#entries.get(path))
    // The SHA-1 of what is stored elsewhere is that of a note about it.
    const digest = data?.lfs?.oid ?? (data?.xetHash === undefined ? data?.oid : undefined)
    if (!success || digest === undefined)
      throw new DeemError('ERR_FORMAT', `${this.what}: the hub's description of '${path}' makes no sense`)
    const size = data.lfs?.size ?? data.size
    if (size > maxSmall && !/\.(?:safetensors|bin)$/.test(path))
      throw new DeemError('ERR_FORMAT', `${this.what}: '${path}' has ${size} bytes, at most ${maxSmall} are read`)
    return { path, size, digest, large: data.lfs !== undefined }
  }

  async has(file: HubFile): Promise<boolean> {
    return (await sizeOf(this.#pointer(file))) === file.size
  }

  async fetch(file: HubFile, signal: AbortSignal | undefined, tell: (change: number) => void): Promise<void> {
    const { root, base, headers } = this.#place
    if (await this.has(file)) return
    const what = `${this.what}, '${file.path}'`
    const blobs = join(root, 'blobs')
    await inCache(what, mkdir(blobs, { recursive: true }))
    const blob = join(blobs, file.digest)
    if ((await sizeOf(blob)) === file.size) tell(file.size)
    else {
      const url = `${base}/${file.path.split('/').map(encodeURIComponent).join('/')}`
      await download(file, url, blobs, { what, headers, signal }, tell)
    }
    await inCache(what, point(this.#pointer(file), blob))
  }

  async remember(): Promise<void> {
    const { root, revision, commit } = this.#place
    if (revision !== commit) await inCache(this.what, replaceFile(join(root, 'refs', ...revision.split('/')), commit))
  }

  #pointer(file: HubFile): string {
    return join(this.folder, ...file.path.split('/'))
  }
}

/** What the cache has of a model, or `why` it has to. */
async function fromCache(root: string, revision: string, why: DeemError): Promise<HubRepo> {
  const commit = commitHash.test(revision)
    ? revision
    : (await readFile(join(root, 'refs', ...revision.split('/')), 'utf8').catch(() => '')).trim()
  const folder = join(root, 'snapshots', commit)
  if (!commitHash.test(commit) || (await sizeOf(folder)) === undefined) throw why
  const there = await inCache(why.message, readdir(folder, { recursive: true, withFileTypes: true }))
  const paths = there.filter((entry) => !entry.isDirectory()).map((entry) => join(entry.parentPath, entry.name))
  return {
    what: `${why.message}; in the cache, '${folder}'`,
    folder,
    names: paths.map((path) => relative(folder, path).split(sep).join('/')),
    file: (path) => ({ path, size: 0, digest: '', large: false }),
    has: async () => true,
    fetch: async () => undefined,
    remember: async () => undefined,
  }
}

/** Bytes of what lies there; undefined where nothing does, a link to nothing included. */
async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.size
}

/** A link in the snapshot to a blob; a copy where the file system has no links. */
async function point(pointer: string, blob: string): Promise<void> {
  await mkdir(dirname(pointer), { recursive: true })
  const fresh = `${pointer}.${randomUUID()}`
  await symlink(relative(dirname(pointer), blob), fresh).catch(() => copyFile(blob, fresh))
  await rename(fresh, pointer)
}

async function replaceFile(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true })
  const fresh = `${path}.${randomUUID()}`
  await writeFile(fresh, text)
  await rename(fresh, path)
}

async function inCache<T>(what: string, action: Promise<T>): Promise<T> {
  try {
    return await action
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `${what}: the cache cannot be used`)
  }
}

const mostAtOnce = 4

/** Fetches files of models, several at a time. The first failure ends all. */
export async function fetchFiles(
  wanted: readonly { repo: HubRepo; paths: readonly string[] }[],
  { signal, onProgress }: CallOptions = {},
): Promise<void> {
  const missing: { repo: HubRepo; file: HubFile }[] = []
  for (const { repo, paths } of wanted)
    for (const path of paths) {
      const file = repo.file(path)
      if (!(await repo.has(file))) missing.push({ repo, file })
    }
  const total = missing.reduce((sum, { file }) => sum + file.size, 0)
  const tellUser = throttled(onProgress)
  let done = 0
  const failed = new AbortController()
  const both = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal
  const worker = async () => {
    for (let next = missing.shift(); next; next = missing.shift())
      await next.repo.fetch(next.file, both, (change) => {
        done += change
        tellUser(done, total)
      })
  }
  await Promise.allSettled(
    Array.from({ length: mostAtOnce }, () =>
      worker().catch((error: unknown) => {
        failed.abort(error)
        throw error
      }),
    ),
  )
  signal?.throwIfAborted()
  if (failed.signal.aborted) throw failed.signal.reason
  if (total > 0) onProgress?.(total, total)
  for (const { repo } of wanted) await repo.remember()
}
