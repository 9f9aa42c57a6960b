// Describes a picture and prints the words as they come; Ctrl-C stops within a token.
//   node .example-build/02-stream.js [PICTURE]
import { DeemError, image, loadModel } from 'deem'

const [picture = 'examples/pictures/fox.png'] = process.argv.slice(2)
const stop = new AbortController()
process.once('SIGINT', () => stop.abort())

using model = await loadModel('deem-nano', { signal: stop.signal })
const words = model.streamText([image(picture)], {
  maxTokens: 48,
  temperature: 0.7,
  topP: 0.9,
  seed: 1,
  signal: stop.signal,
})
try {
  for await (const { text } of words) process.stdout.write(text)
  console.log()
} catch (error) {
  if (!stop.signal.aborted) throw error
  console.log(' (stopped)', DeemError.isInstance(error) ? error.code : '')
}
