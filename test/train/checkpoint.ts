// Checkpoints survive crashes at any moment; damaged ones are refused with a code and left as they are.
import { spawn } from 'node:child_process'
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { DeemError, type ErrorCode } from 'deem'
import { AdamW, hasCheckpoint, loadCheckpoint, saveCheckpoint, trainLoop } from 'deem/train'
import { generator } from '../_harness/random.js'
import { type Trainee, trainee } from '../_harness/trainee.js'

const base = mkdtempSync(join(tmpdir(), 'deem-checkpoint-'))
test.after.always(() => rmSync(base, { recursive: true, force: true }))
let folders = 0
const folder = () => join(base, `${folders++}`, 'run')

const save = (dir: string, { model, optimizer }: Trainee, step: number) =>
  saveCheckpoint(dir, { model }, optimizer, { step, note: 'ü' })
const load = (dir: string, { model, optimizer }: Trainee) => loadCheckpoint(dir, { model }, optimizer)

/** Every file below a folder. */
const contents = (dir: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(dir, { recursive: true, withFileTypes: true })
      .filter((e) => e.isFile())
      .map((e) => [join(e.parentPath, e.name), readFileSync(join(e.parentPath, e.name)).toString('base64')]),
  )

test('what is loaded is what was saved: weights, moments, counts, state', async (t) => {
  using one = await trainee(1)
  using two = await trainee(2)
  for (let i = 0; i < 3; i++) await one.step()
  const dir = folder()
  await save(dir, one, 3)
  t.deepEqual(readdirSync(join(dir, '..')), ['run'], 'nothing else is left')
  t.deepEqual(readdirSync(dir).sort(), ['model.safetensors', 'optimizer.safetensors', 'state.json'])
  t.deepEqual(await load(dir, two), { step: 3, note: 'ü' })
  t.deepEqual(two.values(), one.values())
  for (const [name, x] of Object.entries(one.inputs)) two.inputs[name] = x
  for (let i = 0; i < 3; i++) t.is(await two.step(), await one.step())
  t.deepEqual(two.values(), one.values())
})

test('paths may end in a slash or be relative, and folders above are made', async (t) => {
  using one = await trainee()
  const dir = join(folder(), 'a', 'b')
  for (const step of [1, 2]) await save(`${dir}/`, one, step)
  t.deepEqual(readdirSync(join(dir, '..')), ['b'])
  t.is((await load(`${dir}/../b/.`, one))['step'], 2)
})

/** What a crash may leave behind, from a folder of step 1 (`dir`) and a whole one of step 2 (`next`). */
const crashes: { name: string; step: number; leave: (dir: string, next: string) => void }[] = [
  {
    name: 'a new folder just begun',
    step: 1,
    leave: (dir) => mkdirSync(`${dir}.new`),
  },
  {
    name: 'a new folder half written',
    step: 1,
    leave: (dir, next) => {
      renameSync(next, `${dir}.new`)
      rmSync(join(`${dir}.new`, 'state.json'))
      truncateSync(join(`${dir}.new`, 'model.safetensors'), 100)
    },
  },
  { name: 'a new folder that is whole', step: 1, leave: (dir, next) => renameSync(next, `${dir}.new`) },
  {
    name: 'the old folder moved away, the new one not yet there',
    step: 2,
    leave: (dir, next) => {
      renameSync(dir, `${dir}.old`)
      renameSync(next, `${dir}.new`)
    },
  },
  {
    name: 'the old folder moved away, the new one lost its state',
    step: 1,
    leave: (dir, next) => {
      renameSync(dir, `${dir}.old`)
      renameSync(next, `${dir}.new`)
      truncateSync(join(`${dir}.new`, 'state.json'), 5)
    },
  },
  { name: 'only the old folder', step: 1, leave: (dir) => renameSync(dir, `${dir}.old`) },
  {
    name: 'the new folder in place, the old one not yet removed',
    step: 2,
    leave: (dir, next) => {
      renameSync(dir, `${dir}.old`)
      renameSync(next, dir)
    },
  },
  {
    name: 'the very first one written but not in place',
    step: 2,
    leave: (dir, next) => {
      rmSync(dir, { recursive: true })
      renameSync(next, `${dir}.new`)
    },
  },
]

for (const { name, step, leave } of crashes)
  test(`after a crash with ${name}, training resumes and saves`, async (t) => {
    using one = await trainee(1)
    const dir = folder()
    const values = new Map<number, number[]>()
    for (const [at, to] of [
      [1, dir],
      [2, `${dir}.next`],
    ] as const) {
      await one.step()
      values.set(at, one.values())
      await save(to, one, at)
    }
    leave(dir, `${dir}.next`)
    rmSync(`${dir}.next`, { recursive: true, force: true })

    using two = await trainee(2)
    t.true(hasCheckpoint(dir))
    t.is((await load(dir, two))['step'], step)
    t.deepEqual(two.values(), values.get(step))
    await save(dir, two, 9)
    t.deepEqual(readdirSync(join(dir, '..')), ['run'])
    t.is((await load(dir, two))['step'], 9)
  })

test.serial('killed at any moment, it leaves the last save that was finished, or the one after', async (t) => {
  const dir = folder()
  const writer = fileURLToPath(new URL('../_harness/checkpoint-writer.js', import.meta.url))
  const { uniform } = generator(5)
  using reader = await trainee()
  let reached = 0
  for (let round = 0; round < 8; round++) {
    const child = spawn(process.execPath, [writer, dir], { stdio: ['ignore', 'pipe', 'inherit'] })
    const first = reached
    for await (const chunk of child.stdout) {
      reached = Number(String(chunk).trim().split('\n').at(-1))
      if (reached === first || child.killed) continue
      setTimeout(() => child.kill('SIGKILL'), 40 * uniform())
    }
    t.true(hasCheckpoint(dir))
    const state = await load(dir, reader)
    const step = state['step'] as number
    t.true(reached > first && (step === reached || step === reached + 1), `${step} is there, ${reached} was said`)
    t.is(
      reader.values().reduce((a, v) => a + v, 0),
      state['sum'] as number,
      'weights and state are of one step',
    )
    reached = step
  }
  t.log(`${reached} saves, 8 kills`)
})

const damages: { name: string; code: ErrorCode; says: RegExp; damage: (dir: string) => void }[] = [
  {
    name: 'weights cut short',
    code: 'ERR_FORMAT',
    says: /model\.safetensors/,
    damage: (dir) => truncateSync(join(dir, 'model.safetensors'), 200),
  },
  {
    name: 'empty weights',
    code: 'ERR_FORMAT',
    says: /model\.safetensors/,
    damage: (dir) => truncateSync(join(dir, 'model.safetensors'), 0),
  },
  {
    name: 'no weights',
    code: 'ERR_IO',
    says: /model\.safetensors/,
    damage: (dir) => rmSync(join(dir, 'model.safetensors')),
  },
  {
    name: 'bytes behind the weights',
    code: 'ERR_FORMAT',
    says: /model\.safetensors/,
    damage: (dir) => appendFileSync(join(dir, 'model.safetensors'), 'more'),
  },
  {
    name: 'moments cut short',
    code: 'ERR_FORMAT',
    says: /optimizer\.safetensors/,
    damage: (dir) => truncateSync(join(dir, 'optimizer.safetensors'), 300),
  },
  {
    name: 'no moments',
    code: 'ERR_IO',
    says: /optimizer\.safetensors/,
    damage: (dir) => rmSync(join(dir, 'optimizer.safetensors')),
  },
  {
    name: 'weights in the place of moments',
    code: 'ERR_WEIGHTS',
    says: /optimizer\.safetensors/,
    damage: (dir) => cpSync(join(dir, 'model.safetensors'), join(dir, 'optimizer.safetensors')),
  },
  {
    name: 'moments in the place of weights',
    code: 'ERR_WEIGHTS',
    says: /model\.safetensors/,
    damage: (dir) => cpSync(join(dir, 'optimizer.safetensors'), join(dir, 'model.safetensors')),
  },
  {
    name: 'a state cut short',
    code: 'ERR_FORMAT',
    says: /state\.json' is damaged/,
    damage: (dir) => truncateSync(join(dir, 'state.json'), 7),
  },
  {
    name: 'an empty state',
    code: 'ERR_FORMAT',
    says: /state\.json' is damaged/,
    damage: (dir) => truncateSync(join(dir, 'state.json'), 0),
  },
  {
    name: 'a state that is a number',
    code: 'ERR_FORMAT',
    says: /state\.json' holds no object/,
    damage: (dir) => writeFileSync(join(dir, 'state.json'), '5'),
  },
  {
    name: 'a state of something else',
    code: 'ERR_FORMAT',
    says: /not that of a training loop/,
    damage: (dir) => writeFileSync(join(dir, 'state.json'), '{"step": -1, "history": {}, "seconds": 0}'),
  },
  {
    name: 'no state',
    code: 'ERR_IO',
    says: /no complete checkpoint; it is left alone/,
    damage: (dir) => rmSync(join(dir, 'state.json')),
  },
]

/** Steps through a loop that saves at its end. */
const loop = (small: Trainee, checkpoint: string, steps: number) =>
  trainLoop({
    steps,
    models: { model: small.model },
    optimizer: small.optimizer,
    batch: (step) => step,
    train: async () => ({ loss: await small.step() }),
    checkpoint,
  })

for (const { name, code, says, damage } of damages)
  test(`${name}: refused with ${code}, untouched, and mended it goes on`, async (t) => {
    using one = await trainee(1)
    const dir = folder()
    await loop(one, dir, 2)
    const good = `${dir}.good`
    cpSync(dir, good, { recursive: true })
    damage(dir)
    const before = contents(dir)
    using two = await trainee(1)
    const start = two.values()
    const error = await t.throwsAsync(loop(two, dir, 4))
    t.is(DeemError.isInstance(error) && error.code, code, error?.message)
    t.regex(error?.message ?? '', says)
    t.deepEqual(contents(dir), before)
    // State and weights are looked at before anything changes; moments and what a loop makes of the state come after.
    if (!/optimizer|training loop/.test(says.source)) t.deepEqual(two.values(), start)
    rmSync(dir, { recursive: true })
    renameSync(good, dir)
    await loop(one, `${dir}.other`, 2)
    await loop(two, dir, 4)
    t.deepEqual(two.values(), one.values())
  })

test('a folder of something else is never replaced', async (t) => {
  using one = await trainee()
  const dir = folder()
  mkdirSync(dir, { recursive: true })
  writeFileSync(join(dir, 'thesis.txt'), 'ten years of work')
  t.false(hasCheckpoint(dir))
  let trained = 0
  const error = await t.throwsAsync(
    trainLoop({
      steps: 3,
      models: { model: one.model },
      optimizer: one.optimizer,
      batch: () => trained++,
      train: async () => ({ loss: await one.step() }),
      checkpoint: dir,
    }),
  )
  t.is((error as DeemError).code, 'ERR_IO')
  t.is(trained, 0, 'said before the training')
  await t.throwsAsync(save(dir, one, 1), { code: 'ERR_IO' })
  t.deepEqual(readdirSync(join(dir, '..')), ['run'])
  t.is(readFileSync(join(dir, 'thesis.txt'), 'utf8'), 'ten years of work')
  rmSync(join(dir, 'thesis.txt'))
  await t.notThrowsAsync(save(dir, one, 1), 'an empty folder is nothing')
})

test('where nothing can be written or read, errors have a code', async (t) => {
  using one = await trainee()
  const dir = folder()
  mkdirSync(join(dir, '..'))
  writeFileSync(dir, 'a file')
  for (const path of [dir, join(dir, 'below')]) {
    await t.throwsAsync(save(path, one, 1), { code: 'ERR_IO' }, path)
    await t.throwsAsync(load(path, one), { code: 'ERR_IO' }, path)
    t.false(hasCheckpoint(path))
  }
  t.is(readFileSync(dir, 'utf8'), 'a file')
  await t.throwsAsync(load(join(base, 'nowhere'), one), { code: 'ERR_IO' })
  t.false(existsSync(join(base, 'nowhere')))
})

test('models and optimizers of another make are refused', async (t) => {
  using one = await trainee()
  const dir = folder()
  await save(dir, one, 1)
  one.model.freeze('logit_scale')
  using fewer = new AdamW(one.model, { lr: 1e-3 })
  await t.throwsAsync(loadCheckpoint(dir, { model: one.model }, fewer), { code: 'ERR_WEIGHTS' })
  await t.throwsAsync(loadCheckpoint(dir, { other: one.model }, null), { code: 'ERR_IO' })
  t.is((await loadCheckpoint(dir, { model: one.model }, null))['step'], 1, 'without an optimizer: to use the model')
})
