export {
  addedTokens,
  type SpecialIds,
  Tokenizer,
  type TokenizerConfig,
  type TokenizerJson,
  type TokenizerOptions,
} from './tokenizer.js'
export { trainWordTokenizer } from './word-tokenizer.js'
