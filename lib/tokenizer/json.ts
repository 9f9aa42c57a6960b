/** The part of a tokenizer.json this code looks at; the rest passes through. */
export interface TokenizerJson {
  added_tokens: AddedToken[]
  model: { vocab?: Record<string, number> | [string, number][]; unk_token?: string | null; [key: string]: unknown }
  [key: string]: unknown
}
export interface AddedToken {
  id: number
  content: string
  special?: boolean
  [key: string]: unknown
}

/** tokenizer_config.json: which tokens are bos, eos, pad, unk. */
export interface TokenizerConfig {
  [key: string]: unknown
}

/** @internal An entry of `added_tokens` that is matched as it stands. */
export function addedToken(content: string, id: number): AddedToken {
  return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
}
