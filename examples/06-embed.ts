// Serves answers over HTTP from a worker thread. A client that goes away stops its answer. Calls are asynchronous, so the
// thread is no need: it keeps the model's JavaScript apart from the server's.
//   node .example-build/06-embed.js [PORT]
//   curl --data-binary @examples/pictures/fox.png 'localhost:8080?question=is+there+a+fox?'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { buffer } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { image, loadModel, text } from 'deem'

type Question = { id: number; picture: Uint8Array; question: string } | { id: number; cancel: true }
type Answer = { id: number; answer?: string; error?: string }
async function work(port: NonNullable<typeof parentPort>) {
  const model = await loadModel('deem-nano')
  const running = new Map<number, AbortController>()
  port.on('message', async (asked: Question) => {
    if ('cancel' in asked) return running.get(asked.id)?.abort()
    const stop = new AbortController()
    running.set(asked.id, stop)
    const prompt = [image(asked.picture), text(asked.question)]
    try {
      const { text: answer } = await model.generateText(prompt, { maxTokens: 32, signal: stop.signal })
      port.postMessage({ id: asked.id, answer } satisfies Answer)
    } catch (error) {
      port.postMessage({ id: asked.id, error: String(error) } satisfies Answer)
    } finally {
      running.delete(asked.id)
    }
  })
}

async function serve(listenOn: number) {
  const worker = new Worker(fileURLToPath(import.meta.url))
  const waiting = new Map<number, (answer: Answer) => void>()
  worker.on('message', (answer: Answer) => waiting.get(answer.id)?.(answer))
  let count = 0
  const server = createServer(async (request, response) => {
    const id = ++count
    response.on('close', () => worker.postMessage({ id, cancel: true } satisfies Question))
    const question = new URL(request.url ?? '/', 'http://localhost').searchParams.get('question') ?? ''
    try {
      const picture = await buffer(request)
      worker.postMessage({ id, picture, question } satisfies Question)
      const { answer, error } = await new Promise<Answer>((done) => waiting.set(id, done))
      response.writeHead(error ? 400 : 200).end(JSON.stringify({ answer, error }))
    } catch {
      response.destroy() // the client went away while it was sending
    } finally {
      waiting.delete(id)
    }
  })
  await once(server.listen(listenOn), 'listening')
  console.log(`http://localhost:${(server.address() as AddressInfo).port}`)
}

if (isMainThread) await serve(Number(process.argv[2] ?? 8080))
else if (parentPort) await work(parentPort)
