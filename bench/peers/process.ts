/** A peer is a child process that answers one JSON line with another. While it works we wait, and it sleeps while we work. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface, type Interface } from 'node:readline'
import type { Json } from '../case.js'

export type Reply = Readonly<Record<string, Json>>

export class PeerError extends Error {
  /** The peer cannot run this case at all, which says nothing against either side. */
  readonly unsupported: boolean
  constructor(message: string, unsupported: boolean) {
    super(message)
    this.unsupported = unsupported
  }
}

export class Peer implements Disposable {
  readonly name: string
  readonly #child: ChildProcess
  readonly #lines: Interface
  readonly #waiting: { resolve: (r: Reply) => void; reject: (e: Error) => void }[] = []
  #stderr = ''
  #gone: Error | undefined

  private constructor(name: string, command: string, args: readonly string[], env: Record<string, string>) {
    this.name = name
    this.#child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, ...env } })
    this.#lines = createInterface({ input: this.#child.stdout as NodeJS.ReadableStream })
    this.#lines.on('line', (line) => this.#answer(line))
    this.#child.stderr?.on('data', (data: Buffer) => {
      this.#stderr = (this.#stderr + data.toString()).slice(-4000)
    })
    this.#child.on('error', (error) => this.#end(error))
    this.#child.on('close', (code, signal) =>
      this.#end(new PeerError(`${name} ended with ${signal ?? code}: ${this.#stderr.trim()}`, false)),
    )
    // A write to a process that has ended is reported by its close.
    this.#child.stdin?.on('error', () => undefined)
  }

  /** Starts it and waits for its greeting, which holds the versions of what it runs. */
  static async start(
    name: string,
    command: string,
    args: readonly string[],
    env: Record<string, string> = {},
  ): Promise<{ peer: Peer; versions: Reply }> {
    const peer = new Peer(name, command, args, env)
    return { peer, versions: await peer.#next() }
  }

  #next(): Promise<Reply> {
    if (this.#gone) return Promise.reject(this.#gone)
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }))
  }

  #answer(line: string): void {
    const waiting = this.#waiting.shift()
    let reply: Reply
    try {
      reply = JSON.parse(line) as Reply
    } catch {
      waiting?.reject(new PeerError(`${this.name} printed '${line.slice(0, 200)}'`, false))
      return
    }
    if (typeof reply['error'] === 'string')
      waiting?.reject(new PeerError(`${this.name}: ${reply['error']}`, reply['unsupported'] === true))
    else waiting?.resolve(reply)
  }

  #end(error: Error): void {
    this.#gone ??= error
    for (const { reject } of this.#waiting.splice(0)) reject(this.#gone)
  }

  get alive(): boolean {
    return this.#gone === undefined
  }

  ask(request: Readonly<Record<string, Json>>): Promise<Reply> {
    const reply = this.#next()
    this.#child.stdin?.write(`${JSON.stringify(request)}\n`)
    return reply
  }

  [Symbol.dispose](): void {
    this.#gone ??= new PeerError(`${this.name} was stopped`, false)
    this.#lines.close()
    this.#child.kill('SIGKILL')
  }
}
