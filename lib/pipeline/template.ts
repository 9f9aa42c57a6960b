/** What stands around what people and the model say: a conversation to one document. */
import { DeemError } from '../errors.js'
import type { ImageSource } from '../image/index.js'
import { image, type Part, type TextPart, text } from '../sequence.js'
import { renderJinja } from './jinja.js'
import type { RegionOf } from './prompt.js'

/** What is written around every turn. */
export interface ChatTemplate {
  /** Before the first turn. */
  system: string
  /** Before and after what a person says. */
  user: readonly [before: string, after: string]
  /** After what the model says. */
  assistant: string
}

/**
 * A chat template as Hugging Face's tokenizers carry them. It is given `messages`, `add_generation_prompt` (true), `eos_token`,
 * `pad_token`, `raise_exception`, and an empty `bos_token`: DEEM's one bos stands in front anyway, and another would hide earlier
 * pictures. A message's `content` is a list of `{type: 'text', text}` and `{type: 'image'}` where the template reads such lists, else a
 * string.
 */
export interface JinjaTemplate {
  jinja: string
  /** What the template writes where a picture stands. Default: `<|startofimage|>`, or `<image>` if it writes that instead. */
  image?: string
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
  /**
   * What the released code of DEEM asks VQAv2, OKVQA, TextVQA and GQA with (`VQAEvalCollator` in its
   * `custom_datasets/eval/vqa_datasets.py`): one picture, then one question; 3 beams and 10 ids there. It knows no second turn.
   */
  vqa: {
    system: 'You are a helpful assistant.\n\n',
    user: [
      ' ## USER: Based on the image, please answer the question. ',
      ' Please provide an accurate answer within one word.\n ## ASSISTANT: The answer is',
    ],
    assistant: '</s>',
  },
} as const satisfies Record<string, ChatTemplate>

export type Parts = readonly Part<ImageSource | RegionOf>[]

/** One turn. What the model said is known as ids, which a template that only surrounds it keeps, and as text. */
export type Turn = { role: 'user'; parts: Parts } | { role: 'assistant'; parts: Parts; words: Parts }

/** Turns, the last of them a person's, as the document that the model goes on from; adjacent texts are one. */
export type Render = (turns: readonly Turn[], signal?: AbortSignal) => Promise<Parts>

export function surround({ system, user, assistant }: ChatTemplate): Render {
  return async (turns) =>
    joined([
      text(system),
      ...turns.flatMap(({ role, parts }) =>
        role === 'user' ? [text(user[0]), ...parts, text(user[1])] : [...parts, text(assistant)],
      ),
    ])
}

/** Tokens by their names. */
export interface TokenNames {
  bos: string
  eos: string
  pad: string
}

const usualPlaces = ['<|startofimage|>', '<image>'] as const

export function jinjaRender(
  { jinja, image: place }: JinjaTemplate,
  { system, names }: { system: string | undefined; names: TokenNames },
): Render {
  if (typeof jinja !== 'string' || jinja === '') throw new DeemError('ERR_CONFIG', 'a Jinja template must be a string')
  if (place === '') throw new DeemError('ERR_CONFIG', "a template's image must not be empty")
  const run = (messages: object[], signal?: AbortSignal) =>
    renderJinja(
      jinja,
      { messages, add_generation_prompt: true, bos_token: '', eos_token: names.eos, pad_token: names.pad },
      { signal },
    )
  const places = place === undefined ? usualPlaces : [place]
  let lists: Promise<boolean> | undefined
  return async (turns, signal) => {
    lists ??= readsLists((messages) => run(messages, signal))
    const inLists = await lists
    const hide = hiding(places, [system ?? '', ...turns.flatMap((turn) => textsOf(shown(turn)))])
    const content = (parts: Parts) =>
      inLists
        ? parts.map((p) => (p.type === 'text' ? { type: 'text', text: hide.in(stringOf(p)) } : { type: 'image' }))
        : parts.map((p) => (p.type === 'text' ? hide.in(stringOf(p)) : places[0])).join('')
    const messages = [
      ...(system === undefined ? [] : [{ role: 'system', content: content([text(system)]) }]),
      ...turns.map((turn) => ({ role: turn.role, content: content(shown(turn)) })),
    ]
    const pictures = turns.flatMap((turn) => shown(turn).filter((p) => p.type === 'image'))
    const written = await run(messages, signal)
    const rendered = written.startsWith(names.bos) ? written.slice(names.bos.length) : written
    const used = places.find((p) => rendered.includes(p)) ?? places[0]
    const pieces = rendered.split(used as string)
    if (pieces.length !== pictures.length + 1)
      throw new DeemError(
        'ERR_FORMAT',
        `[template] it writes ${places.join(' or ')} ${pieces.length - 1} times for ${pictures.length} pictures; say what it writes as 'image'`,
      )
    return joined(
      pieces.flatMap((s, i) => [text(hide.out(s)), ...(i < pictures.length ? [pictures[i] as Part<ImageSource>] : [])]),
    )
  }
}

/** What a template is shown of a turn. */
function shown(turn: Turn): Parts {
  return turn.role === 'user' ? turn.parts : turn.words
}

/** Whether a template reads the content of a message as a list of parts: it then writes a text of one as it is. */
async function readsLists(run: (messages: object[]) => Promise<string>): Promise<boolean> {
  const probe = '7319024615'
  try {
    const written = await run([{ role: 'user', content: [{ type: 'text', text: probe }] }])
    return written.includes(probe) && !written.includes('"type"')
  } catch (error) {
    if (DeemError.isInstance(error) && error.code === 'ERR_FORMAT') return false
    throw error
  }
}

/** What people write must not pass for a picture's place: it goes through the template in disguise. */
function hiding(
  places: readonly string[],
  texts: readonly string[],
): { in: (s: string) => string; out: (s: string) => string } {
  let mark = '\ue000'
  while (texts.some((s) => s.includes(mark))) mark += '\ue000'
  const disguises = places.map((place, i) => [place, `${mark}${i}\ue001`] as const)
  return {
    in: (s) => disguises.reduce((t, [place, disguise]) => t.replaceAll(place, disguise), s),
    out: (s) => disguises.reduce((t, [place, disguise]) => t.replaceAll(disguise, place), s),
  }
}

const textsOf = (parts: Parts): string[] => parts.flatMap((p) => (p.type === 'text' ? [stringOf(p)] : []))

function stringOf({ text: words }: TextPart): string {
  if (typeof words === 'string') return words
  throw new DeemError('ERR_VALUE', '[template] a Jinja template needs text as a string but got ids')
}

/** Adjacent strings as one, so that they are cut into tokens as the whole text would be. */
function joined(parts: Parts): Parts {
  const out: Part<ImageSource | RegionOf>[] = []
  for (const part of parts) {
    const last = out.at(-1)
    if (part.type === 'text' && part.text.length === 0) continue
    if (part.type === 'text' && last?.type === 'text' && typeof part.text === 'string' && typeof last.text === 'string')
      out[out.length - 1] = text(last.text + part.text)
    else out.push(part.type === 'text' ? part : image(part.image))
  }
  return out
}
