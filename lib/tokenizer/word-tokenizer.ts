import { DeemError } from '../errors.js'
import { addedToken, type TokenizerJson } from './json.js'
import { Tokenizer } from './tokenizer.js'

const specials = ['<unk>', '<s>', '</s>', '<pad>'] as const
// As the BertPreTokenizer of tokenizer.json splits: runs of word characters, and every punctuation mark by itself.
const words = /[^\s\p{P}!-/:-@[-`{-~]+|[\p{P}!-/:-@[-`{-~]/gu

/**
 * A small tokenizer over the words of `texts`, lower case, punctuation apart; for closed vocabularies.
 * Ids: `<unk>` 0, `<s>` 1, `</s>` 2, `<pad>` 3, then words by falling frequency (ties by spelling), then DEEM's added tokens.
 *
 * @param options.minCount words seen less often are unknown
 * @param options.maxWords only the most frequent ones
 */
export function trainWordTokenizer(
  texts: Iterable<string>,
  options: { minCount?: number; maxWords?: number } = {},
): Tokenizer {
  const counts = new Map<string, number>()
  for (const text of texts) {
    for (const [word] of text.toLowerCase().matchAll(words)) counts.set(word, (counts.get(word) ?? 0) + 1)
  }
  const kept = [...counts]
    .filter(([, count]) => count >= (options.minCount ?? 1))
    .sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1))
    .slice(0, options.maxWords ?? Number.POSITIVE_INFINITY)
    .map(([word]) => word)
  if (kept.length === 0)
    throw new DeemError('ERR_VALUE', '[trainWordTokenizer] needs at least one word but the texts hold none')
  const names = { bos_token: '<s>', eos_token: '</s>', pad_token: '<pad>', unk_token: '<unk>' }
  return new Tokenizer(wordJson(kept), { ...names, tokenizer_class: 'PreTrainedTokenizerFast' })
}

// WordPiece without continuation pieces is a word-level model that every reader of tokenizer.json has.
function wordJson(list: readonly string[]): TokenizerJson {
  const bos = { SpecialToken: { id: '<s>', type_id: 0 } }
  const sequence = (id: string) => ({ Sequence: { id, type_id: 0 } })
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specials.map((token, id) => addedToken(token, id)),
    normalizer: { type: 'Lowercase' },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: {
      type: 'TemplateProcessing',
      single: [bos, sequence('A')],
      pair: [bos, sequence('A'), bos, sequence('B')],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: '<unk>',
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries([...specials, ...list].map((token, id) => [token, id])),
    },
  }
}
