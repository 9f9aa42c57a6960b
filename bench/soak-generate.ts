// npm run soak:generate [-- N]: N generations of the model in test/fixtures/model/deem_nano, texts (greedy, drawn, beams, streams that are
// left) and pictures in turn, then aborts in a row, then worker threads of which half are ended midway. Fails if memory grew by more than
// 2 % after the first half; says how late the event loop came. V8 is held to a small young generation: it grows by the rate of garbage.
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { isMainThread, Worker } from 'node:worker_threads'
import { image, memory, type Picture, Pipeline, Tokenizer } from 'deem'
import { fixtures, nano } from './fixture.js'

async function load(): Promise<Pipeline> {
  return new Pipeline({ ...(await nano()), tokenizer: await Tokenizer.load(`${fixtures}tokenizer`, { padId: 511 }) })
}

const picture: Picture = { dtype: 'f32', shape: [64, 64, 3], data: new Float32Array(64 * 64 * 3).fill(0.4) }
const prompt = [image(picture)]

async function one(p: Pipeline, i: number): Promise<void> {
  const text = { maxTokens: 12, minLength: 14 }
  if (i % 5 === 0) await p.generateText(prompt, text)
  else if (i % 5 === 1) await p.generateTexts([prompt, 'The work'], { ...text, temperature: 1, seed: i })
  else if (i % 5 === 2) await p.score(prompt, ['yes', 'no'])
  else if (i % 5 === 3) for await (const _ of p.streamText(prompt, text)) break
  else await p.generateImage('a license', { steps: 4, seed: i })
}

if (isMainThread) {
  const count = Number(process.argv[2] ?? 1000)
  const p = await load()
  const collect = async () => {
    for (let i = 0; i < 3; i++) {
      global.gc?.()
      await sleep(10)
    }
  }
  const measure = async () => {
    await collect()
    return { ...memory(), rss: process.memoryUsage().rss }
  }
  const delays = monitorEventLoopDelay({ resolution: 10 })
  const early = Math.ceil(count / 2)
  let first = await measure()
  delays.enable()
  const begin = performance.now()
  for (let i = 0; i < count; i++) {
    await one(p, i)
    if (i + 1 === early) first = await measure()
  }
  delays.disable()
  const took = performance.now() - begin
  const last = await measure()
  let failed = false
  for (const name of ['current', 'reserved', 'rss'] as const) {
    const growth = last[name] / first[name] - 1
    failed ||= growth > 0.02
    console.log(
      `${name}: ${(first[name] / 2 ** 20).toFixed(2)} MB after ${early}, ${(last[name] / 2 ** 20).toFixed(2)} MB after ${count} (${(100 * growth).toFixed(2)} %)`,
    )
  }
  console.log(
    `${(took / count).toFixed(1)} ms a generation; event loop late: 99th percentile ${(delays.percentile(99) / 1e6 - 10).toFixed(1)} ms, at worst ${(delays.max / 1e6 - 10).toFixed(1)} ms`,
  )

  const reason = new Error('aborted')
  let aborted = 0
  let slowest = 0
  for (let i = 0; i < 200; i++) {
    const stop = new AbortController()
    const run =
      i % 2 === 0
        ? p.generateText(prompt, { maxTokens: 200, minLength: 220, signal: stop.signal })
        : p.generateImage('a license', { steps: 900, signal: stop.signal })
    await sleep(i % 20)
    const asked = performance.now()
    stop.abort(reason)
    await run.catch((e: unknown) => {
      if (e !== reason) throw e
      aborted++
    })
    slowest = Math.max(slowest, performance.now() - asked)
  }
  const after = await measure()
  console.log(
    `${aborted} of 200 aborted, at most ${slowest.toFixed(1)} ms after it was asked for; current ${(after.current / last.current - 1) * 100} %`,
  )
  failed ||= after.current > last.current * 1.02 || aborted < 190

  const workers = Array.from({ length: 8 }, () => new Worker(new URL(import.meta.url)))
  const codes = await Promise.all(
    workers.map(async (worker, i) => {
      const done = new Promise<string>((resolve) => {
        worker.once('message', resolve)
        worker.once('exit', () => resolve('ended'))
        worker.once('error', (e) => resolve(String(e)))
      })
      if (i % 2 === 1) {
        await sleep(300 + 40 * i)
        await worker.terminate()
      }
      return done
    }),
  )
  console.log(`workers: ${codes.join(', ')}`)
  failed ||= codes.filter((c) => c === 'done').length < 4
  const end = await measure()
  console.log(`current after the workers: ${(end.current / 2 ** 20).toFixed(2)} MB`)
  failed ||= end.current > after.current * 1.02
  p.dispose()
  if (failed) {
    console.error('memory grew, or something did not end as it should')
    process.exitCode = 1
  }
} else {
  const { parentPort } = await import('node:worker_threads')
  const p = await load()
  for (let i = 0; i < 60; i++) await one(p, i)
  p.dispose()
  parentPort?.postMessage('done')
}
