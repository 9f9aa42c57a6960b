// Paints a picture from words and shows how far it is.
//   node .example-build/03-paint.js [WORDS] [FOLDER]
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { encodePng, loadModel } from 'deem'

const [words = 'a blue background, an apple in the top left.', folder = 'runs/examples'] = process.argv.slice(2)
await mkdir(folder, { recursive: true })
using model = await loadModel('deem-nano')

const painting = await model.generateImage(words, {
  sampler: 'dpmpp',
  karras: true,
  steps: 20,
  guidance: 3,
  seed: 7,
  onProgress: (done, total) => process.stderr.write(`\r${done} of ${total}`),
})
process.stderr.write('\n')
await writeFile(join(folder, 'painting.png'), await encodePng(painting))

console.log(`painting.png in ${folder}`)
