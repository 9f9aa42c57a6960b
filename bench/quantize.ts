// npm run bench:quantize [-- --json]: what few bits cost and save, beside bf16, f16 and f32: bytes, perplexity, distance of the logits from
// those of f32, and tokens a second. Two models: the one of test/fixtures, and a random language model of 8 layers x 1024 with a vocabulary
// of 32,000. The text is drawn from the f32 model itself, so that its perplexity means something; the products of one token after another
// are timed in turn, several rounds of each.
import { Deem, TextSession, tensor, threads } from 'deem'
import { nano } from './fixture.js'

type Config = Record<string, unknown>
interface Variant {
  name: string
  dtype: 'f32' | 'bf16' | 'f16'
  quantization?: object
}
const few = (bits: number, group: number, symmetric: boolean, dtype: 'f32' | 'bf16' = 'f32'): Variant => ({
  name: `int${bits}, groups of ${group}${symmetric ? '' : ', asymmetric'}${dtype === 'f32' ? '' : `, rest ${dtype}`}`,
  dtype,
  quantization: { bits, group, symmetric },
})
const variants: Variant[] = [
  { name: 'f32', dtype: 'f32' },
  { name: 'bf16', dtype: 'bf16' },
  { name: 'f16', dtype: 'f16' },
  few(8, 32, true),
  few(8, 32, true, 'bf16'),
  few(4, 32, true),
  few(4, 32, false),
  few(4, 128, true),
  few(4, 32, true, 'bf16'),
]
const length = 96
const rounds = 5
const decoded = 32

async function build(config: Config, { dtype, quantization }: Variant, from?: Deem): Promise<Deem> {
  const model = await Deem.build({ ...config, ...(quantization && { quantization }) }, { dtype, seed: 1 })
  if (!from) return model
  const targets = new Set(model.parameters().map((p) => p.quantized?.name ?? p.name))
  for (const { name } of from.parameters())
    if (targets.has(name)) {
      using value = from.view(name)
      await model.assignAll({ [name]: value })
    }
  return model
}

const rowOf = (ids: readonly number[]) => ({
  text_ids: tensor(BigInt64Array.from(ids, BigInt), [1, ids.length]),
  attention_mask: tensor(
    BigInt64Array.from(ids, () => 1n),
    [1, ids.length],
  ),
  num_image_per_seq: tensor(new BigInt64Array(1), [1]),
})

/** Text as the model itself would write it. */
async function drawn(model: Deem, added: readonly number[]): Promise<number[]> {
  const ids = [1]
  using session = await TextSession.open(model, rowOf(ids))
  let last: number[] | undefined
  while (ids.length < length) {
    const next = await session.next(last, { temperature: 1, seeds: [1], banned: [...added] })
    last = next.ids
    ids.push(next.ids[0] as number)
  }
  return ids
}

interface Read {
  logits: Float32Array
  perplexity: number
}
async function read(model: Deem, ids: readonly number[]): Promise<Read> {
  const y = await model.call('train', rowOf(ids), { details: true }, { grad: false })
  const logits = y['logits']?.toFloat32() ?? new Float32Array()
  const perplexity = Math.exp(y['loss_txt']?.item() ?? Number.NaN)
  for (const t of Object.values(y)) t.dispose()
  return { logits, perplexity }
}

/** Distance of logits [L, V]: the largest, the root mean square over that of the deviation in each row, and the mean divergence. */
function distance(a: Float32Array, want: Float32Array, vocabulary: number) {
  let [worst, squares, spread, divergence] = [0, 0, 0, 0]
  const rows = want.length / vocabulary
  for (let r = 0; r < rows; r++) {
    const [x, y] = [a, want].map((v) => v.subarray(r * vocabulary, (r + 1) * vocabulary)) as [
      Float32Array,
      Float32Array,
    ]
    const mean = y.reduce((s, v) => s + v, 0) / vocabulary
    const total = (v: Float32Array) => {
      const top = v.reduce((m, u) => Math.max(m, u), Number.NEGATIVE_INFINITY)
      return top + Math.log(v.reduce((s, u) => s + Math.exp(u - top), 0))
    }
    const [zx, zy] = [total(x), total(y)]
    for (let i = 0; i < vocabulary; i++) {
      const [p, q] = [x[i] as number, y[i] as number]
      if (q < -50) continue // ids the head keeps silent
      worst = Math.max(worst, Math.abs(p - q))
      squares += (p - q) ** 2
      spread += (q - mean) ** 2
      divergence += Math.exp(q - zy) * (q - zy - (p - zx))
    }
  }
  return { worst, relative: Math.sqrt(squares / spread), divergence: divergence / rows }
}

async function tokensPerSecond(model: Deem, ids: readonly number[]): Promise<number> {
  using session = await TextSession.open(model, rowOf(ids.slice(0, 16)), { reserve: decoded + 1 })
  let last = (await session.next(undefined)).ids
  const begin = performance.now()
  for (let i = 0; i < decoded; i++) last = (await session.next(last)).ids
  return (1000 * decoded) / (performance.now() - begin)
}

const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1] as number

async function measure(title: string, config: Config, start: (f32: Deem) => Promise<void>) {
  const base = await build(config, variants[0] as Variant)
  await start(base)
  const { llm, txt_vocab_size } = config as { llm: { vocab_size: number }; txt_vocab_size: number }
  const added = Array.from({ length: txt_vocab_size - llm.vocab_size }, (_, i) => llm.vocab_size + i)
  const ids = await drawn(base, added)
  const want = await read(base, ids)
  const bytesOfModel = (m: Deem, names: RegExp) =>
    m.parameters().reduce((sum, { name, shape, dtype }) => {
      const size = { f32: 4, bf16: 2, f16: 2, i64: 8, i32: 4, u8: 1 }[dtype]
      return names.test(name) ? sum + size * shape.reduce((a, b) => a * b, 1) : sum
    }, 0)
  const models: Deem[] = []
  for (const v of variants) models.push(await build(config, v, base))
  const speed = variants.map((): number[] => [])
  for (let round = 0; round < rounds; round++)
    for (const [i, m] of models.entries()) speed[i]?.push(await tokensPerSecond(m, ids))
  type Row = { name: string; layerBytes: number; bytes: number; perplexity: number; tokensPerSecond: number }
  const rows: (Row & ReturnType<typeof distance>)[] = []
  for (const [i, m] of models.entries()) {
    const got = await read(m, ids)
    rows.push({
      name: (variants[i] as Variant).name,
      layerBytes: bytesOfModel(m, /^mm_decoder\.layers\..*_proj\./),
      bytes: bytesOfModel(m, /^(mm_decoder|text_decoder)\./),
      perplexity: got.perplexity,
      ...distance(got.logits, want.logits, txt_vocab_size),
      tokensPerSecond: median(speed[i] as number[]),
    })
    m.dispose()
  }
  base.dispose()
  return { title, tokens: ids.length, threads: threads(), rows }
}

const { model, config } = await nano()
const small = await measure('test/fixtures/model/deem_nano', config as Config, async (f32) => {
  for (const { name } of model.parameters()) {
    using value = model.view(name)
    await f32.assignAll({ [name]: value })
  }
})
model.dispose()
const nanoConfig = config as { llm: object; special_token_dict: object; image_perceiver: object }
const tokens = Object.fromEntries(
  Object.entries(nanoConfig.special_token_dict).map(([name, id]) => [name, id >= 511 ? 32000 + id - 512 + 1 : id]),
)
const wide = await measure(
  'random, 8 layers x 1024, vocabulary 32,000',
  {
    ...config,
    llm: {
      ...nanoConfig.llm,
      hidden_size: 1024,
      num_attention_heads: 16,
      intermediate_size: 2816,
      num_hidden_layers: 8,
      vocab_size: 32000,
    },
    txt_vocab_size: 32007,
    special_token_dict: tokens,
    image_perceiver: { ...nanoConfig.image_perceiver, encoder_hidden_size: 1024 },
  },
  // Fresh weights are N(0, 0.02), and the logits of such a model say nothing: layers as strong as their inputs, and a head that chooses.
  async (f32) => {
    for (const { name, shape } of f32
      .parameters()
      .filter((p) => /layers\..*_proj\.weight|text_decoder\.head\.weight/.test(p.name))) {
      const scale = name.startsWith('text') ? 4 : 1 / (0.02 * Math.sqrt(shape[1] as number))
      using value = f32.read(name)
      const data = value.toFloat32().map((v) => v * scale)
      using scaled = tensor(data, shape)
      await f32.assignAll({ [name]: scaled })
    }
  },
)

if (process.argv.includes('--json')) {
  console.log(JSON.stringify([small, wide], null, 1))
} else {
  for (const { title, tokens: count, threads: team, rows } of [small, wide]) {
    console.log(`\n${title}; ${count} tokens, ${team} threads, median of ${rounds} rounds of ${decoded} tokens`)
    console.table(
      Object.fromEntries(
        rows.map((r) => [
          r.name,
          {
            'layers MB': +(r.layerBytes / 1e6).toFixed(3),
            'model MB': +(r.bytes / 1e6).toFixed(3),
            perplexity: +r.perplexity.toFixed(3),
            'logits max': +r.worst.toExponential(1),
            'logits rms': +r.relative.toExponential(1),
            KL: +r.divergence.toExponential(1),
            'tokens/s': +r.tokensPerSecond.toFixed(1),
          },
        ]),
      ),
    )
  }
}
