// Memory and aborts of loading, saving and converting a model of a few hundred MB, made in a temporary folder: what each takes beyond what
// it returns, in the engine's own count and as anonymous memory of the process, against the largest tensor; and how late an abort is.
//   npm run build:bench && node --expose-gc .bench-build/weights-memory.js
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { convertFolder, Deem, emptyCache, loadDeem, memory, resetPeakMemory, saveDeem } from 'deem'
import { fixtures } from './fixture.js'

const gc = (globalThis as { gc?: () => void }).gc
if (!gc) throw new Error('run it with --expose-gc')
const MB = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`

function anonymous(): number {
  return Number(/RssAnon:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024
}

async function settle(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    gc?.()
    await new Promise((done) => setImmediate(done))
  }
  emptyCache()
}

/** Peaks above what was there before and what the result keeps. */
async function measure(title: string, run: () => Promise<{ keeps: number; free: () => void }>): Promise<void> {
  await settle()
  resetPeakMemory()
  const [before, anonymousBefore] = [memory().current, anonymous()]
  let peak = anonymousBefore
  const watch = setInterval(() => {
    peak = Math.max(peak, anonymous())
  }, 2)
  const start = performance.now()
  const { keeps, free } = await run()
  const seconds = (performance.now() - start) / 1000
  clearInterval(watch)
  const engine = memory().peak - before - keeps
  free()
  // What an earlier measurement freed may still be the process's: then this says less than the engine does.
  const process = keeps === 0 ? `, ${MB(peak - anonymousBefore)} anonymous` : ''
  console.log(
    `${title.padEnd(34)} ${MB(engine)} in the engine${process} beyond the ${MB(keeps)} it keeps; ${seconds.toFixed(2)} s`,
  )
}

const stored = JSON.parse(readFileSync(`${fixtures}hf_layout/deem/config.json`, 'utf8'))
const vocabulary = 32000
const tokens = Object.fromEntries(
  Object.keys(stored.special_token_dict).map((key, i) => [key, i < 3 ? i : vocabulary + i - 3]),
)
const config = {
  ...stored,
  txt_vocab_size: vocabulary + 6,
  special_token_dict: tokens,
  llm: {
    ...stored.llm,
    hidden_size: 768,
    num_attention_heads: 12,
    intermediate_size: 2048,
    num_hidden_layers: 12,
    vocab_size: vocabulary,
  },
  image_perceiver: { ...stored.image_perceiver, encoder_hidden_size: 768 },
}

const place = mkdtempSync(join(tmpdir(), 'deem-weights-memory-'))
try {
  const model = await Deem.build(config, { seed: 1 })
  const numbers = model.parameters().map(({ shape }) => shape.reduce((a, b) => a * b, 1))
  const count = numbers.reduce((a, b) => a + b, 0)
  const largest = Math.max(...numbers)
  console.log(`${(count / 1e6).toFixed(1)} M numbers; the largest tensor has ${MB(4 * largest)} as f32`)
  const nothing = { keeps: 0, free: () => undefined }
  await measure('save as bf16', async () => {
    await saveDeem(model, join(place, 'bf16'), { dtype: 'bf16' })
    return nothing
  })
  model.dispose()
  const to = (title: string, options: Parameters<typeof convertFolder>[2], from = 'bf16') =>
    measure(title, async () => {
      await convertFolder(join(place, from), join(place, 'to'), { ...options, force: true })
      return nothing
    })
  await to('convert bf16 to bf16', {})
  await to('convert bf16 to f32', { dtype: 'f32', maxShardBytes: 1e8 })
  await convertFolder(join(place, 'bf16'), join(place, 'f32'), { dtype: 'f32' })
  await to('convert f32 to f16', { dtype: 'f16' }, 'f32')
  await to('convert f32 to a LLaMA in bf16', { dtype: 'bf16', layout: 'llama' }, 'f32')
  for (const [from, dtype] of [
    ['bf16', 'f32'],
    ['f32', 'f32'],
    ['f32', 'bf16'],
  ] as const)
    await measure(`load ${from} as ${dtype}`, async () => {
      const { model: loaded } = await loadDeem(join(place, from), { dtype })
      return { keeps: memory().current, free: () => loaded.dispose() }
    })

  const works = {
    convert: (signal: AbortSignal) =>
      convertFolder(join(place, 'bf16'), join(place, 'to'), { dtype: 'f32', force: true, signal }),
    load: (signal: AbortSignal) =>
      loadDeem(join(place, 'bf16'), { signal }).then(({ model: loaded }) => loaded.dispose()),
  }
  for (const [title, work] of Object.entries(works)) {
    const late: number[] = []
    for (let i = 0; i < 30; i++) {
      const stop = new AbortController()
      const running = work(stop.signal).then(
        () => false,
        () => true,
      )
      await new Promise((next) => setTimeout(next, 10 + 20 * i))
      const start = performance.now()
      stop.abort()
      if (await running) late.push(performance.now() - start)
    }
    late.sort((a, b) => a - b)
    const at = (q: number) => `${late[Math.floor(q * (late.length - 1))]?.toFixed(1)} ms`
    console.log(`${title}: ${late.length} aborts: median ${at(0.5)}, 90 % ${at(0.9)}, latest ${at(1)}`)
  }
  await settle()
  console.log(`${MB(memory().current)} left`)
} finally {
  rmSync(place, { recursive: true })
}
