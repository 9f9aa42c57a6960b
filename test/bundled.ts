// The model that comes with the package.
import { statSync } from 'node:fs'
import test from 'ava'
import { backgrounds, image, loadModel, measureBackgrounds, questionAt, renderScenes, Sprites, text } from 'deem'

const weights = new URL('../models/deem-nano/model.safetensors', import.meta.url)

test('deem-nano weighs at most 8 MB', (t) => {
  t.true(statSync(weights).size <= 8e6)
})

test('deem-nano knows what is in unseen scenes', async (t) => {
  using model = await loadModel('deem-nano')
  const sprites = await Sprites.load()
  const right = async (kind: 'existence' | 'background', count: number) => {
    const asked = Array.from({ length: count }, (_, i) =>
      questionAt({ seed: 5, split: 'test', vendors: ['twitter', 'google'] }, kind, i),
    )
    const { data } = renderScenes(
      asked.map(({ scene }) => scene),
      sprites,
    )
    const said = await model.generateTexts(
      asked.map(({ question }, i) => [
        image({ dtype: 'f32', shape: [64, 64, 3], data: data.slice(i * 12288, (i + 1) * 12288) }),
        text(question.text),
      ]),
      { maxTokens: 8 },
    )
    return said.filter(({ text: answer }, i) => answer.trim() === asked[i]?.question.answer).length / count
  }
  const [existence, background] = [await right('existence', 120), await right('background', 40)]
  t.log(`existence ${existence}, background ${background}`)
  t.true(existence >= 0.85)
  t.true(background >= 0.95)
})

test('deem-nano paints the background it is asked for', async (t) => {
  using model = await loadModel('deem-nano')
  const right: boolean[] = []
  for (const [i, name] of ['red', 'green', 'blue', 'white'].entries()) {
    const picture = await model.generateImage(`a ${name} background, a cat in the top left.`, { guidance: 3, seed: i })
    const [seen] = measureBackgrounds({ ...picture, shape: [1, ...picture.shape] })
    right.push(backgrounds[seen?.background ?? -1]?.name === name)
  }
  t.deepEqual(right, [true, true, true, true])
})
