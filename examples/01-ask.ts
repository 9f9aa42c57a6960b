// Asks about a picture: in the model's own words, among given answers, and how sure it is of each.
//   node .example-build/01-ask.js [PICTURE] [QUESTION]
import { image, loadModel, text } from 'deem'

const [picture = 'examples/pictures/fox.png', question = 'is there a fox?'] = process.argv.slice(2)
const choices = ['yes', 'no']

using model = await loadModel('deem-nano')
const prompt = [image(picture), text(question)]

const free = await model.generateText(prompt, { maxTokens: 16 })
console.log(`${question} ${free.text}`)

const chosen = await model.generateText(prompt, { choices })
console.log(`one of ${choices.join(', ')}: ${chosen.text}`)

const scores = await model.score(prompt, choices)
const total = scores.reduce((sum, logProb) => sum + Math.exp(logProb), 0)
for (const [i, choice] of choices.entries())
  console.log(`${choice.padEnd(4)}${((100 * Math.exp(scores[i] as number)) / total).toFixed(1)} %`)
