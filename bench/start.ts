// npm run bench:start: how long a program waits before it can work. Every figure is a process of its own, in alternation: an empty one, one
// that imports the package, one that prints the first token of an answer by the model that comes with it. Medians and quartiles, ms.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const entry = JSON.stringify(pathToFileURL(join(root, 'dist/index.js')).href)
const times = Number(process.argv[2] ?? 15)
if (!Number.isSafeInteger(times) || times < 1) throw new Error('how many times must be a whole number of at least 1')

const programs = {
  'an empty process': 'console.log(0)',
  "import 'deem'": `const begin = performance.now(); await import(${entry}); console.log(performance.now() - begin)`,
  'first token, from process start': `const { image, loadModel } = await import(${entry})
    const model = await loadModel('deem-nano')
    for await (const { text } of model.streamText([image('examples/pictures/fox.png')], { maxTokens: 1 }))
      if (text) console.log(performance.now())
    process.exit(0)`,
}

/** What the program says it took, and how long its process lived. */
function run(program: string): [said: number, lived: number] {
  const begin = performance.now()
  const args = ['--input-type=module', '-e', program]
  const { stdout, stderr, status } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return [Number(stdout.split('\n')[0]), performance.now() - begin]
}

const quantile = (sorted: number[], q: number) => sorted[Math.round(q * (sorted.length - 1))] as number

const runs = Object.keys(programs).map(() => ({ said: [] as number[], lived: [] as number[] }))
for (let i = 0; i < times; i++)
  for (const [at, program] of Object.values(programs).entries()) {
    const [said, lived] = run(program)
    runs[at]?.said.push(said)
    runs[at]?.lived.push(lived)
  }
for (const [at, name] of Object.keys(programs).entries()) {
  const show = (values: number[] = []) => {
    const sorted = values.toSorted((a, b) => a - b)
    return `${quantile(sorted, 0.5).toFixed(0)} (${quantile(sorted, 0.25).toFixed(0)}..${quantile(sorted, 0.75).toFixed(0)})`
  }
  const { said = [], lived = [] } = runs[at] ?? {}
  console.log(`${name}: ${said[0] ? `${show(said)} ms, ` : ''}whole process ${show(lived)} ms`)
}
