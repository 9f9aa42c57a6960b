/** `tokenizer`: ids and texts of stored strings, from tokenizer.json and from the SentencePiece model alone. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tokenizer } from '../../tokenizer/index.js'
import type { Case } from '../case.js'
import type { Comparison } from '../compare.js'

interface Expected {
  pad_token_id: number
  vocab_size: number
  special_tokens: Record<string, number>
  strings: { text: string; ids: number[]; decoded: string; sentencepiece_ids?: number[] }[]
}

export async function runTokenizer(c: Case): Promise<Comparison[]> {
  const expected = JSON.parse(readFileSync(join(c.dir, 'expected.json'), 'utf8')) as Expected
  const options = { padId: expected.pad_token_id }
  const fast = await Tokenizer.load(join(c.dir, 'tokenizer.json'), options)
  const pieces = await Tokenizer.load(join(c.dir, 'tokenizer.model'), options)
  const results: Comparison[] = []
  const put = (name: string, got: unknown, want: unknown) => {
    const [a, b] = [JSON.stringify(got), JSON.stringify(want)]
    const difference = a === b ? 0 : 1
    results.push({
      name,
      gradient: false,
      maxAbs: difference,
      maxRel: difference,
      error: difference,
      ok: a === b,
      allowed: `${b}, is ${a}`,
    })
  }
  for (const [name, t] of Object.entries({ fast, pieces })) {
    put(`${name} vocabulary`, t.vocabSize, expected.vocab_size)
    for (const [token, id] of Object.entries(expected.special_tokens)) put(`${name} ${token}`, t.id(token), id)
  }
  expected.strings.forEach(({ text, ids, decoded, sentencepiece_ids }, i) => {
    put(`ids ${i}`, fast.encode(text, { bos: true }), ids)
    put(`decoded ${i}`, fast.decode(ids), decoded)
    if (sentencepiece_ids) put(`sentencepiece ids ${i}`, pieces.encode(text, { bos: true }), sentencepiece_ids)
    put(`ids ${i} from pieces`, pieces.encode(text, { bos: true }), ids)
    put(`decoded ${i} from pieces`, pieces.decode(ids), decoded)
  })
  return results
}
