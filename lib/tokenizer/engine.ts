import { createRequire } from 'node:module'
import { causedBy } from '../errors.js'

/** What is used of the library, typed here because its declarations do not resolve under nodenext. */
export interface Engine {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: (number | undefined)[] }
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string
  token_to_id(token: string): number | undefined
  id_to_token(id: number): string | undefined
  decoder: Decoding | null
}
interface Decoding {
  decoders?: Decoding[]
  config?: { type?: string }
  text_decoder?: { decode(bytes: Uint8Array): string }
}

/** The library loads with the first tokenizer: programs that have none start sooner. */
let library: { Tokenizer: new (json: object, config: object) => Engine } | undefined

export function makeEngine(json: object, config: object): Engine {
  library ??= createRequire(import.meta.url)('@huggingface/tokenizers') as NonNullable<typeof library>
  try {
    const engine = new library.Tokenizer(json, config)
    decodeBytesExactly(engine.decoder)
    return engine
  } catch (cause) {
    throw unusable(cause)
  }
}

/** Runs the library, which finds some mistakes of a tokenizer.json only when it uses them. */
export function guarded<T>(call: () => T): T {
  try {
    return call()
  } catch (cause) {
    throw unusable(cause)
  }
}

const unusable = (cause: unknown) => causedBy(cause, 'ERR_FORMAT', '[tokenizer] cannot use this tokenizer.json')

const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/**
 * Byte tokens become text as in the reference tokenizers: a run that is not UTF-8 gives one replacement character per byte,
 * and a byte order mark stays. The library's own decoder drops the mark and merges characters.
 */
function decodeBytesExactly(node: Decoding | null): void {
  node?.decoders?.forEach(decodeBytesExactly)
  if (node?.config?.type === 'ByteFallback') node.text_decoder = { decode: decodeRun }
}

function decodeRun(bytes: Uint8Array): string {
  try {
    return strict.decode(bytes)
  } catch {
    return '\ufffd'.repeat(bytes.length)
  }
}
