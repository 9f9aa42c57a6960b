import { DeemError } from '../errors.js'
import { TextSession } from '../generate/text-session.js'
import type { ImageSource } from '../image/index.js'
import { image, text } from '../sequence.js'
import { type GenerateOptions, interleave, type PicturePiece, type Said, type TextDelta, write } from './interleave.js'
import type { Pipeline } from './pipeline.js'
import { disposeInputs, type Prompt, partsOf, promptInputs, type RegionOf } from './prompt.js'
import {
  type ChatTemplate,
  chatTemplates,
  type JinjaTemplate,
  jinjaRender,
  type Parts,
  type Render,
  surround,
  type Turn,
} from './template.js'
import type { TextOptions, TextResult } from './writer.js'

export interface SessionOptions {
  /** A known one, `own` for the one in the model's folder, or another. Default plain. */
  template?: keyof typeof chatTemplates | 'own' | ChatTemplate | JinjaTemplate
  /** In place of the template's own words before the first turn; the system message of a Jinja template. */
  system?: string
}

/** What somebody said or showed. */
export interface SessionMessage {
  role: 'user' | 'assistant'
  content: readonly ({ type: 'text'; text: string } | { type: 'image'; image: ImageSource | RegionOf })[]
}

/** An id, or a picture in its slots. */
type Unit = number | { image: ImageSource | RegionOf }

/**
 * A conversation of several turns: what was said, and the pictures in it, are read once and stay in the cache. With a Jinja template that
 * holds as long as a longer conversation is written as the shorter one and more; where it is not (some templates drop what the model
 * thought, or trim what it said), the cache goes back to where they part or, before the last thing that was read, everything is read
 * again: the answers are the same, and slower. One turn at a time; one that fails or is aborted ends the conversation.
 */
export class Session implements Disposable {
  readonly #pipeline: Pipeline
  readonly #render: Render
  readonly #turns: Turn[] = []
  #session: TextSession | undefined
  /** What the session has read. */
  #read: Unit[] = []
  /** How much of that it cannot forget. */
  #fixed = 0
  #state: 'idle' | 'busy' | 'over' = 'idle'

  /** Throws ERR_CONFIG for a template that is unknown, or `own` where the folder has none. */
  constructor(pipeline: Pipeline, { template = 'plain', system }: SessionOptions = {}) {
    this.#pipeline = pipeline
    this.#render = renderOf(pipeline, template, system)
  }

  /** Everything that was said and shown so far. */
  get history(): SessionMessage[] {
    const { tokenizer } = this.#pipeline
    return this.#turns.map((turn) => ({
      role: turn.role,
      content: (turn.role === 'user' ? turn.parts : turn.words).map((part) =>
        part.type === 'image'
          ? { type: 'image', image: part.image }
          : { type: 'text', text: typeof part.text === 'string' ? part.text : tokenizer.decode(part.text) },
      ),
    }))
  }

  /** The answer to what a person says or shows. */
  async ask(prompt: Prompt, options: TextOptions = {}): Promise<TextResult> {
    const parts = this.stream(prompt, options)
    for (;;) {
      const { value, done } = await parts.next()
      if (done) return value
    }
  }

  /** The same as it comes. Where the model wants to show a picture the answer ends: {@link generate} paints it. */
  async *stream(prompt: Prompt, options: TextOptions = {}): AsyncGenerator<TextDelta, TextResult, undefined> {
    const said = yield* this.#turn(prompt, options, async function* (session, pipeline) {
      const result = yield* write(session, pipeline, options)
      return [{ type: 'text', result }]
    })
    return (said[0] as Said & { type: 'text' }).result
  }

  /** An answer of text and pictures of the model's own, as they come; later turns know them. */
  async *generate(
    prompt: Prompt,
    options: GenerateOptions = {},
  ): AsyncGenerator<TextDelta | PicturePiece, void, undefined> {
    yield* this.#turn(prompt, options, (session, pipeline) => interleave(session, pipeline, options))
  }

  async *#turn<Piece>(
    prompt: Prompt,
    options: TextOptions,
    answer: (session: TextSession, pipeline: Pipeline) => AsyncGenerator<Piece, Said[], undefined>,
  ): AsyncGenerator<Piece, Said[], undefined> {
    if (this.#state === 'busy') throw new DeemError('ERR_VALUE', 'the conversation is at another turn')
    if (this.#state === 'over') throw new DeemError('ERR_DISPOSED', 'the conversation is over')
    this.#state = 'busy'
    let finished = false
    try {
      this.#turns.push({ role: 'user', parts: partsOf(prompt) })
      const session = await this.#reach(this.#unitsOf(await this.#render(this.#turns, options.signal)), options)
      const said = yield* answer(session, this.#pipeline)
      this.#note(said)
      finished = true
      return said
    } finally {
      this.#state = finished ? 'idle' : 'over'
      if (!finished) this.dispose()
    }
  }

  /** The session when it has read exactly these. */
  async #reach(wanted: readonly Unit[], options: TextOptions): Promise<TextSession> {
    const { model, tokenizer, geometry } = this.#pipeline
    const { signal } = options
    const parted = this.#read.findIndex((unit, i) => !same(unit, wanted[i]))
    const common = parted < 0 ? this.#read.length : parted
    let session = common >= this.#fixed && common < wanted.length ? this.#session : undefined
    if (!session) {
      this.#session?.dispose()
      this.#session = undefined
    }
    const rest = session ? wanted.slice(common) : wanted
    const inputs = await promptInputs([grouped(rest)], tokenizer, geometry, { ...options, bos: !session })
    try {
      if (!session) session = await TextSession.open(model, inputs, { signal })
      else {
        const slots = (unit: Unit) => (typeof unit === 'number' ? 1 : 1 + geometry.imageTokens)
        const length = this.#read.slice(0, common).reduce<number>((sum, unit) => sum + slots(unit), 1)
        if (parted >= 0) await session.truncate(length, { signal })
        await session.append(inputs, { signal })
      }
    } finally {
      disposeInputs(inputs)
    }
    this.#session = session
    this.#read = [...wanted]
    this.#fixed = wanted.length
    return session
  }

  /** Remembers what the model said. */
  #note(said: readonly Said[]): void {
    const { eos, soi } = this.#pipeline.tokenizer.ids
    const parts: Parts[number][] = []
    const words: Parts[number][] = []
    for (const piece of said) {
      if (piece.type === 'image') {
        parts.push(image(piece.image))
        words.push(image(piece.image))
        this.#read.push({ image: piece.image })
        this.#fixed = this.#read.length
        continue
      }
      const { ids, text: written } = piece.result
      // An end of the model's own is the template's to write; the last token was picked but never read.
      const last = ids.at(-1)
      parts.push(text(last === eos || last === soi ? ids.slice(0, -1) : ids))
      if (written !== '') words.push(text(written))
      this.#read.push(...ids.slice(0, -1))
    }
    this.#turns.push({ role: 'assistant', parts, words })
  }

  #unitsOf(parts: Parts): Unit[] {
    const { tokenizer } = this.#pipeline
    return parts.flatMap((part): Unit[] => {
      if (part.type === 'image') return [{ image: part.image }]
      return typeof part.text === 'string' ? tokenizer.encode(part.text) : [...part.text]
    })
  }

  dispose(): void {
    this.#state = 'over'
    this.#session?.dispose()
    this.#session = undefined
  }
  [Symbol.dispose](): void {
    this.dispose()
  }
}

function renderOf(pipeline: Pipeline, template: SessionOptions['template'], system: string | undefined): Render {
  const { tokenizer } = pipeline
  const jinja = (chosen: JinjaTemplate) => {
    const { bos, eos, pad } = tokenizer.ids
    const name = (id: number) => tokenizer.token(id) ?? ''
    return jinjaRender(chosen, { system, names: { bos: name(bos), eos: name(eos), pad: name(pad) } })
  }
  if (template === 'own') {
    const own = tokenizer.chatTemplate
    if (own === undefined) throw new DeemError('ERR_CONFIG', "the model's folder has no chat template of its own")
    return jinja({ jinja: own })
  }
  const chosen: ChatTemplate | JinjaTemplate | undefined =
    typeof template === 'string'
      ? Object.hasOwn(chatTemplates, template)
        ? chatTemplates[template]
        : undefined
      : template
  if (!chosen)
    throw new DeemError('ERR_CONFIG', `unknown template '${template}', known are ${Object.keys(chatTemplates)},own`)
  return 'jinja' in chosen ? jinja(chosen) : surround({ ...chosen, ...(system !== undefined && { system }) })
}

function same(a: Unit, b: Unit | undefined): boolean {
  return typeof a === 'object' && typeof b === 'object' ? a.image === b.image : a === b
}

/** Units as parts again. */
function grouped(units: readonly Unit[]): Parts {
  const parts: Parts[number][] = []
  let ids: number[] = []
  const flush = () => {
    if (ids.length > 0) parts.push(text(ids))
    ids = []
  }
  for (const unit of units) {
    if (typeof unit === 'number') ids.push(unit)
    else {
      flush()
      parts.push(image(unit.image))
    }
  }
  flush()
  return parts
}
