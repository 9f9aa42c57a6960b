// npm run soak [-- STEPS]: many training steps of the model in test/fixtures/model/deem_nano (all losses, backward, AdamW), one new batch of
// draws each. Fails if memory grew by more than 2 % between step 100 and the end; says how late a 10 ms timer came meanwhile.
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { type DeemTrainInputs, memory, readTensors } from 'deem'
import { AdamW, publishedGroups, trainStep } from 'deem/train'
import { fixtures, nano, permuteImages } from './fixture.js'

const steps = Number(process.argv[2] ?? 2000)
const early = 100
const { model } = await nano()
const { tensors } = await readTensors(`${fixtures}model/deem_nano/inputs.safetensors`)
const inputs = permuteImages(tensors) as unknown as DeemTrainInputs
using optimizer = new AdamW(model, publishedGroups)

const megabytes = (bytes: number) => (bytes / 2 ** 20).toFixed(2)
const measure = () => ({ ...memory(), rss: process.memoryUsage().rss })

// The timer is our own: the histogram's resolution is a millisecond.
let worst = 0
let due = performance.now() + 10
const timer = setInterval(() => {
  const now = performance.now()
  worst = Math.max(worst, now - due)
  due = now + 10
}, 10)
const delays = monitorEventLoopDelay({ resolution: 10 })
delays.enable()

const begin = performance.now()
let first = measure()
for (let step = 1; step <= steps; step++) {
  const losses = await trainStep(model, inputs, optimizer, { lrFactor: 0.1, seed: 1, step })
  if (!Number.isFinite(losses['loss'])) throw new Error(`the loss of step ${step} is ${losses['loss']}`)
  if (step === early) first = measure()
}
const last = measure()
clearInterval(timer)
delays.disable()

const growth = (name: 'current' | 'reserved' | 'rss') => last[name] / first[name] - 1
for (const name of ['current', 'reserved', 'rss'] as const)
  console.log(
    `${name}: ${megabytes(first[name])} MB at step ${early}, ${megabytes(last[name])} MB at step ${steps} (${(100 * growth(name)).toFixed(2)} %)`,
  )
console.log(`${((performance.now() - begin) / steps).toFixed(1)} ms a step`)
console.log(
  `10 ms timer: at worst ${worst.toFixed(1)} ms late; 99th percentile ${(delays.percentile(99) / 1e6 - 10).toFixed(1)} ms`,
)
if (growth('current') > 0.02 || growth('reserved') > 0.02 || growth('rss') > 0.02) {
  console.error('memory grew by more than 2 %')
  process.exitCode = 1
}
