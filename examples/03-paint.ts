// Paints a picture from words and shows it on its way; then a variation of it, and one corner of it anew.
//   node .example-build/03-paint.js [WORDS] [FOLDER]
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { encodePng, loadModel, type Picture, pictureAt } from 'deem'

const [words = 'a blue background, an apple in the top left.', folder = 'runs/examples'] = process.argv.slice(2)
await mkdir(folder, { recursive: true })
const save = async (name: string, picture: Picture) => writeFile(join(folder, name), await encodePng(picture))
using model = await loadModel('deem-nano')

const painting = await model.generateImage(words, {
  sampler: 'dpmpp',
  karras: true,
  steps: 20,
  guidance: 3,
  seed: 7,
  onProgress: (done, total) => process.stderr.write(`\r${done} of ${total}`),
  previewEvery: 5,
  onPreview: async (pictures, done) => {
    const [count = 0, ...shape] = pictures.shape
    const data = (await pictures.data()) as Float32Array
    await save(`step-${done}.png`, pictureAt({ dtype: 'f32', shape: [count, ...shape], data }, 0))
  },
})
process.stderr.write('\n')
await save('painting.png', painting)

// A strength below 1 starts from a picture: near 0 little of it changes, near 1 nearly all.
await save('variation.png', await model.generateImage(words, { picture: painting, strength: 0.6, seed: 8 }))
const corner = { box: [32, 32, 32, 32] } as const
const wish = 'a blue background, an apple in the top left, a cat in the bottom right.'
await save('repainted.png', await model.generateImage(wish, { picture: painting, repaint: corner, seed: 9 }))
console.log(`painting.png, variation.png and repainted.png in ${folder}`)
