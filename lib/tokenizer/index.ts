export type { AddedToken, TokenizerConfig, TokenizerJson } from './json.js'
export { addedTokens, type SpecialIds, Tokenizer, type TokenizerOptions } from './tokenizer.js'
export { trainWordTokenizer } from './word-tokenizer.js'
