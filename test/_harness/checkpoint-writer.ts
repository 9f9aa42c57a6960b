// Trains and saves without pause until it is killed: node checkpoint-writer.js DIR. Prints the step of every finished save.
import { writeSync } from 'node:fs'
import { hasCheckpoint, loadCheckpoint, saveCheckpoint } from 'deem/train'
import { trainee } from './trainee.js'

const dir = process.argv[2] as string
const { model, optimizer, step, values } = await trainee()
let done = hasCheckpoint(dir) ? Number((await loadCheckpoint(dir, { model }, optimizer))['step']) : 0
for (;;) {
  await step()
  done++
  // With a sum over the weights, so that a state beside other weights shows.
  await saveCheckpoint(dir, { model }, optimizer, { step: done, sum: values().reduce((a, v) => a + v, 0) })
  writeSync(1, `${done}\n`)
}
