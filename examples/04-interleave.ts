// Lets the model alternate: it sees a picture, writes, paints what it wrote of, reads its own picture and writes on.
//   node .example-build/04-interleave.js [PICTURE] [FOLDER]
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { encodePng, loadModel, text } from 'deem'

const [words = 'a red background, a cat in the top right.', folder = 'runs/examples'] = process.argv.slice(2)
await mkdir(folder, { recursive: true })
using model = await loadModel('deem-nano')

let pictures = 0
const story = model.generate([text(words)], {
  mode: 'image', // begins with a picture; 'auto' paints where the model itself wants to
  maxImages: 2,
  maxTokens: 40,
  painting: { steps: 20, guidance: 3, seed: 3 },
})
for await (const piece of story) {
  if (piece.type === 'text') {
    process.stdout.write(piece.text)
  } else {
    const file = join(folder, `story-${++pictures}.png`)
    await writeFile(file, await encodePng(piece.image))
    process.stdout.write(`\n[${file}]\n`)
  }
}
console.log(`\n${pictures} pictures`)
