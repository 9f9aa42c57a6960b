import { DeemError } from '../errors.js'
import { decode } from '../generate/decode.js'
import { TextSession } from '../generate/text-session.js'
import { text } from '../sequence.js'
import type { Pipeline, TextDelta } from './pipeline.js'
import { disposeInputs, type Prompt, partsOf, promptInputs } from './prompt.js'
import { decoding, type TextOptions, type TextResult, Writer } from './writer.js'

/** What stands around what people and the model say. */
export interface ChatTemplate {
  /** Before the first turn. */
  system: string
  /** Before and after what a person says. */
  user: readonly [before: string, after: string]
  /** After what the model says; it also ends there where this begins. */
  assistant: string
}

/** Known templates by name. */
export const chatTemplates = {
  /** Nothing around anything. */
  plain: { system: '', user: ['', ''], assistant: '' },
  /** Vicuna 1.1, the language model of the published DEEM. */
  vicuna: {
    system:
      "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    user: ['USER: ', ' ASSISTANT:'],
    assistant: '</s>',
  },
} as const satisfies Record<string, ChatTemplate>

export interface ChatOptions {
  /** Default plain. */
  template?: keyof typeof chatTemplates | ChatTemplate
  /** In place of the template's own words before the first turn. */
  system?: string
}

/**
 * A conversation of several turns: what was said, and the pictures in it, are read once and stay in the cache. One turn at a time; one that
 * fails or is aborted ends the conversation.
 */
export class Chat implements Disposable {
  readonly #pipeline: Pipeline
  readonly #template: ChatTemplate
  #session: TextSession | undefined
  /** What the next turn has to begin with: tokens that were said but not read yet. */
  #pending: number[] = []
  #state: 'idle' | 'busy' | 'over' = 'idle'

  constructor(pipeline: Pipeline, { template = 'plain', system }: ChatOptions = {}) {
    this.#pipeline = pipeline
    const chosen: ChatTemplate | undefined = typeof template === 'string' ? chatTemplates[template] : template
    if (!chosen)
      throw new DeemError('ERR_CONFIG', `unknown template '${template}', known are ${Object.keys(chatTemplates)}`)
    this.#template = { ...chosen, ...(system !== undefined && { system }) }
  }

  /** The answer to what a person says or shows. */
  async ask(prompt: Prompt, options: TextOptions = {}): Promise<TextResult> {
    const parts = this.stream(prompt, options)
    for (;;) {
      const { value, done } = await parts.next()
      if (done) return value
    }
  }

  /** The same as it comes. */
  async *stream(prompt: Prompt, options: TextOptions = {}): AsyncGenerator<TextDelta, TextResult, undefined> {
    if (this.#state === 'busy') throw new DeemError('ERR_VALUE', 'the conversation is at another turn')
    if (this.#state === 'over') throw new DeemError('ERR_DISPOSED', 'the conversation is over')
    this.#state = 'busy'
    let finished = false
    try {
      const { tokenizer } = this.#pipeline
      const writer = new Writer(tokenizer, options)
      const session = await this.#read(prompt, options)
      const ids: number[] = []
      for await (const step of decode(session, this.#pipeline.ends(), decoding(options, writer))) {
        ids.push(step.ids[0] as number)
        const more = writer.take(step, 0)
        if (more !== '') yield { type: 'text', text: more }
        if (writer.done) break
      }
      const rest = writer.end()
      if (rest !== '') yield { type: 'text', text: rest }
      // The last token was picked but never read; an end of the model's own is the template's to write.
      const { eos, soi } = tokenizer.ids
      const last = ids.at(-1)
      const own = last === undefined || last === eos || last === soi ? [] : [last]
      this.#pending = [...own, ...tokenizer.encode(this.#template.assistant)]
      finished = true
      return writer.result(tokenizer)
    } finally {
      this.#state = finished ? 'idle' : 'over'
      if (!finished) this.dispose()
    }
  }

  async #read(prompt: Prompt, options: TextOptions): Promise<TextSession> {
    const { tokenizer, geometry, model } = this.#pipeline
    const { system, user } = this.#template
    const first = this.#session === undefined
    const words = (s: string) => (s === '' ? [] : [text(s)])
    const document = [
      ...(this.#pending.length > 0 ? [text(this.#pending)] : []),
      ...words(first ? system : ''),
      ...words(user[0]),
      ...partsOf(prompt),
      ...words(user[1]),
    ]
    const inputs = await promptInputs([document], tokenizer, geometry, { ...options, bos: first })
    try {
      if (this.#session) await this.#session.append(inputs, { signal: options.signal })
      else this.#session = await TextSession.open(model, inputs, { signal: options.signal })
    } finally {
      disposeInputs(inputs)
    }
    return this.#session
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
