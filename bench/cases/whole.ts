/** What users wait for: a training step, a caption, a picture, the next token. */
import type { Case, Json, Precision } from '../case.js'
import { decodeWeights } from './count.js'

/** The shape of TinyLlama 1.1B. MMFS and the rest of the model are as small as they can be: without pictures they do nothing. */
export const llama1b = {
  hidden_size: 2048,
  num_attention_heads: 32,
  num_key_value_heads: 4,
  intermediate_size: 5632,
  num_hidden_layers: 22,
  vocab_size: 32000,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 2048,
  mmfs_heads: 1,
  mmfs_points: 1,
}

const nano = {
  inputs: {},
  group: 'whole',
  work: () => ({ flops: 0, bytes: 0 }),
  peers: ['torch', 'torch-compile'],
} as const
const tokens = 32

/** Tokens one by one, each of which reads all weights; in few bits, `bytes` of them a number with the scales of groups of 32. */
function decodeCase(
  name: string,
  few: { bits: 4 | 8; bytes: number } | undefined,
  precisions: readonly Precision[],
): Case {
  const quantization = few && { bits: few.bits }
  return {
    name: `${name}/decode${tokens}`,
    group: 'whole',
    program: 'decode',
    settings: { config: llama1b as Json, prompt: 16, tokens, ...(quantization && { quantization }) },
    inputs: {},
    pass: 'forward',
    precisions,
    work: (perElement) => ({
      flops: 2 * tokens * decodeWeights(llama1b),
      bytes: tokens * (few?.bytes ?? perElement) * decodeWeights(llama1b),
    }),
    peers: few ? ['llama.cpp'] : ['torch', 'torch-compile', 'llama.cpp'],
    // Greedy choices of a random model in bf16 part ways at the first near tie.
    unchecked: ['bf16'],
  }
}

export const whole: Case[] = [
  {
    ...nano,
    name: 'nano/train-step',
    program: 'deemTrain',
    settings: { model: 'nano', batch: 32 },
    pass: 'backward',
    precisions: ['f32', 'bf16'],
  },
  {
    ...nano,
    name: 'fixture/train-step',
    program: 'deemTrain',
    settings: { model: 'fixture' },
    pass: 'backward',
    precisions: ['f32'],
  },
  {
    ...nano,
    name: 'nano/caption',
    program: 'deemCaption',
    settings: { model: 'nano', tokens: 24 },
    pass: 'forward',
    precisions: ['f32'],
  },
  {
    ...nano,
    name: 'nano/ddim20',
    program: 'deemPaint',
    settings: { model: 'nano', steps: 20, guidance: 3 },
    pass: 'forward',
    precisions: ['f32'],
  },
  decodeCase('llama-1.1b', undefined, ['f32', 'bf16']),
  decodeCase('llama-1.1b-int8', { bits: 8, bytes: 1 + 2 / 32 }, ['bf16']),
  decodeCase('llama-1.1b-int4', { bits: 4, bytes: 0.5 + 2 / 32 }, ['bf16']),
]
