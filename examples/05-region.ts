// Asks about a part of a picture: the encoder passes on what lies in a box, a polygon or a COCO mask.
//   node .example-build/05-region.js [PICTURE]
import { image, loadModel, type Region, text, within } from 'deem'

const [picture = 'examples/pictures/fox.png'] = process.argv.slice(2)
const regions: Record<string, Region> = {
  'left half': { box: [0, 0, 32, 64] },
  'right half': { box: [32, 0, 32, 64] },
  'lower triangle': {
    polygons: [
      [
        [0, 64],
        [64, 64],
        [64, 0],
      ],
    ],
  },
}

using model = await loadModel('deem-nano')
const question = text('is there a fox?')
const whole = await model.generateText([image(picture), question], { choices: ['yes', 'no'] })
console.log(`everywhere: ${whole.text}`)

// Several prompts run as one batch; each gets the answer it would get alone.
const prompts = Object.values(regions).map((region) => [image(within(picture, region)), question])
const answers = await model.generateTexts(prompts, { choices: ['yes', 'no'] })
for (const [i, name] of Object.keys(regions).entries()) console.log(`${name}: ${answers[i]?.text}`)
