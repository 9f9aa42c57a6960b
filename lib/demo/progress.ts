import type { WriteStream } from 'node:tty'
import { memory } from '../system.js'

/**
 * One display over all stages: on a terminal a line that rewrites itself, elsewhere a line now and then.
 * Losses are running means, so that they can be read.
 */
export class Progress {
  readonly #out: WriteStream
  readonly #stages: readonly string[]
  readonly #begin: number = performance.now()
  #stage = ''
  #steps = 0
  #first = 0
  #started = 0
  #pictures = 0
  #shown = 0
  #means: Record<string, number> = {}

  constructor(stages: readonly string[], out: WriteStream = process.stderr) {
    this.#stages = stages
    this.#out = out
  }

  /** A stage begins, or goes on at step `first`. */
  start(stage: string, steps: number, first = 0): void {
    this.#stage = stage
    this.#steps = steps
    this.#first = first
    this.#pictures = 0
    this.#started = performance.now()
    this.#shown = 0
    this.#means = {}
  }

  /** `step` of the stage is done; it looked at `pictures` of them. */
  update(step: number, pictures: number, losses: Record<string, number>): void {
    this.#pictures += pictures
    for (const [name, value] of Object.entries(losses)) {
      const before = this.#means[name]
      this.#means[name] = before === undefined ? value : before + 0.1 * (value - before)
    }
    const now = performance.now()
    if (now - this.#shown < (this.#out.isTTY ? 200 : 15_000) && step !== this.#steps) return
    this.#shown = now
    const seconds = (now - this.#started) / 1000
    const left = (seconds / Math.max(1, step - this.#first)) * (this.#steps - step)
    const values = Object.entries(this.#means).map(
      ([name, v]) => `${name.replace(/^loss_?/, '') || 'loss'} ${v.toPrecision(3)}`,
    )
    const { current, peak } = memory()
    const megabytes = (bytes: number) => `${Math.round(bytes / 2 ** 20)}`
    this.#write(
      [
        `${this.#stages.indexOf(this.#stage) + 1}/${this.#stages.length} ${this.#stage}`,
        `step ${step}/${this.#steps}`,
        values.join(' '),
        `${Math.round(this.#pictures / Math.max(seconds, 1e-3))} pictures/s`,
        `${clock(left)} left in this stage, ${clock((now - this.#begin) / 1000)} so far`,
        `${megabytes(current)} MB, peak ${megabytes(peak)}`,
      ].join('  '),
      step === this.#steps,
    )
  }

  /** A line of its own. */
  say(line: string): void {
    this.#write(line, true)
  }

  #write(line: string, done: boolean): void {
    if (!this.#out.isTTY) this.#out.write(`${line}\n`)
    else this.#out.write(`\r\u001b[2K${line.slice(0, this.#out.columns - 1)}${done ? '\n' : ''}`)
  }
}

export function clock(seconds: number): string {
  const s = Math.round(seconds)
  return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')}`
}
