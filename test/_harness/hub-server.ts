// A server that speaks the hub's API: model info, file trees in pages, files behind redirects to another origin. It counts and misbehaves.
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join, relative, sep } from 'node:path'

interface Served {
  bytes: Buffer
  large: boolean
  digest: string
}
export type Files = Record<string, Buffer>

export interface Asked {
  url: string
  range?: string | undefined
  authorization?: string | undefined
}
/** Answers in place of the server where it returns true. `part`: what is asked for. */
export type Misbehaviour = (asked: Asked, response: ServerResponse, part: 'info' | 'tree' | 'file' | 'body') => boolean

export const folderFiles = (folder: string): Files =>
  Object.fromEntries(
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((e) => e.isFile())
      .map((e) => join(e.parentPath, e.name))
      .map((path) => [relative(folder, path).split(sep).join('/'), readFileSync(path)]),
  )

const hex = (kind: 'sha1' | 'sha256', ...parts: (string | Buffer)[]) => {
  const hash = createHash(kind)
  for (const part of parts) hash.update(part)
  return hash.digest('hex')
}
export const gitHash = (bytes: Buffer) => hex('sha1', `blob ${bytes.length}\0`, bytes)
export const sha256 = (bytes: Buffer) => hex('sha256', bytes)

export class HubServer {
  readonly asked: Asked[] = []
  /** Bytes of file bodies that were sent. */
  sent = 0
  misbehave: Misbehaviour = () => false
  /** What the tree says of a file in place of the truth. */
  claims: Record<string, object> = {}
  pageSize = 3
  /** By `org/name@commit`. */
  readonly #models = new Map<string, Map<string, Served>>()
  /** By `org/name@revision`. */
  readonly #commits = new Map<string, string>()
  readonly #servers: Server[] = []
  /** Of the API, and of the bodies of large files. */
  readonly #ports: number[] = []

  static async start(): Promise<HubServer> {
    const hub = new HubServer()
    const listen = async (handle: (request: IncomingMessage, response: ServerResponse) => void) => {
      const server = createServer(handle)
      hub.#servers.push(server)
      await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
      return (server.address() as AddressInfo).port
    }
    hub.#ports.push(await listen((q, a) => hub.#api(q, a)), await listen((q, a) => hub.#bodies(q, a)))
    return hub
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.#ports[0]}`
  }

  stop(): void {
    for (const server of this.#servers) {
      server.closeAllConnections()
      server.close()
    }
  }

  forget(): void {
    this.asked.length = 0
    this.sent = 0
    this.misbehave = () => false
    this.claims = {}
  }

  /** Weights go to the large files, the rest into git, as the hub has it. */
  put(name: string, revision: string, files: Files): string {
    const commit = hex('sha1', name, revision, ...Object.entries(files).flat())
    const served = new Map(
      Object.entries(files).map(([path, bytes]) => {
        const large = /\.(?:safetensors|bin|model)$/.test(path)
        return [path, { bytes, large, digest: large ? sha256(bytes) : gitHash(bytes) }]
      }),
    )
    this.#models.set(`${name}@${commit}`, served)
    for (const key of [revision, commit]) this.#commits.set(`${name}@${key}`, commit)
    return commit
  }

  #note(request: IncomingMessage): Asked {
    const { range, authorization } = request.headers
    const asked = { url: request.url ?? '', ...(range && { range }), ...(authorization && { authorization }) }
    this.asked.push(asked)
    return asked
  }

  #api(request: IncomingMessage, response: ServerResponse): void {
    const asked = this.#note(request)
    const url = new URL(asked.url, this.endpoint)
    const refuse = (status: number, code: string) =>
      response.writeHead(status, { 'x-error-code': code }).end(JSON.stringify({ error: code }))
    const [, name, revision] = /^\/api\/models\/([^/]+\/[^/]+)\/(?:revision|tree)\/([^/]+)$/.exec(url.pathname) ?? []
    const [, owner, at, path] = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname) ?? []
    const kind = path !== undefined ? 'file' : url.pathname.includes('/tree/') ? 'tree' : 'info'
    if (this.misbehave(asked, response, kind)) return
    const commit = this.#commits.get(`${name ?? owner}@${decodeURIComponent(revision ?? at ?? '')}`)
    const model = this.#models.get(`${name ?? owner}@${commit}`)
    const known = [...this.#models.keys()].some((other) => other.startsWith(`${name ?? owner}@`))
    if (!model) return void refuse(404, known ? 'RevisionNotFound' : 'RepoNotFound')
    if (path !== undefined) {
      const file = model.get(decodeURIComponent(path))
      if (!file) return void refuse(404, 'EntryNotFound')
      if (file.large) {
        const location = `http://127.0.0.1:${this.#ports[1]}/${file.digest}`
        return void response.writeHead(302, { location, 'x-linked-etag': `"${file.digest}"` }).end()
      }
      return void this.#send(asked, response, file)
    }
    if (kind === 'info') {
      response.writeHead(200, { 'content-type': 'application/json' })
      return void response.end(
        JSON.stringify({ _id: '1', id: name, sha: commit, private: false, lastModified: '2024-01-01' }),
      )
    }
    const from = Number(url.searchParams.get('cursor') ?? 0)
    const entries = [...model].map(([at, { bytes, large, digest }]) => ({
      type: 'file',
      path: at,
      size: bytes.length,
      oid: large ? gitHash(Buffer.from('a pointer')) : digest,
      ...(large && { lfs: { oid: digest, size: bytes.length, pointerSize: 134 } }),
      ...this.claims[at],
    }))
    const more = from + this.pageSize < entries.length
    url.searchParams.set('cursor', String(from + this.pageSize))
    response.writeHead(200, {
      'content-type': 'application/json',
      ...(more && { link: `<${url}>; rel="next"` }),
    })
    response.end(JSON.stringify(entries.slice(from, from + this.pageSize)))
  }

  #bodies(request: IncomingMessage, response: ServerResponse): void {
    const asked = this.#note(request)
    const files = [...this.#models.values()].flatMap((model) => [...model.values()])
    const file = files.find(({ digest }) => `/${digest}` === asked.url)
    if (!file) return void response.writeHead(404).end()
    this.#send(asked, response, file)
  }

  #send(asked: Asked, response: ServerResponse, { bytes }: Served): void {
    if (this.misbehave(asked, response, 'body')) return
    const from = Number(/^bytes=(\d+)-$/.exec(asked.range ?? '')?.[1] ?? 0)
    this.sent += bytes.length - from
    const range = { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }
    response.writeHead(asked.range ? 206 : 200, { 'content-length': bytes.length - from, ...(asked.range && range) })
    response.end(bytes.subarray(from))
  }
}
