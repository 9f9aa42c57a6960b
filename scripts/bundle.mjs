// node scripts/bundle.mjs [RUN] [NAME]: makes the model of a finished `npm run demo` (runs/demo) the one that comes with the package,
// models/deem-nano: bf16 weights of at most 8 MB, configuration, tokenizer, what was measured and what it was trained with.
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadDeem, saveDeem } from '../dist/index.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const [run = join(root, 'runs/demo'), name = 'deem-nano'] = process.argv.slice(2)
const target = join(root, 'models', name)
const limit = 8e6

const { model, tokenizer } = await loadDeem(join(run, 'model'))
rmSync(target, { recursive: true, force: true })
mkdirSync(target, { recursive: true })
await saveDeem(model, target, { dtype: 'bf16', tokenizer })
model.dispose()
for (const file of ['report.html', 'results.json']) copyFileSync(join(run, file), join(target, file))

const { feedback, config } = JSON.parse(readFileSync(join(run, 'run.json'), 'utf8'))
const results = JSON.parse(readFileSync(join(run, 'results.json'), 'utf8'))
const percent = (v) => `${(100 * v).toFixed(1)}`
const row = (label, r) =>
  `| ${label} | ${percent(r.value)} | ${percent(r.low)} to ${percent(r.high)} | ${r.right} of ${r.total} |`
const { size } = statSync(join(target, 'model.safetensors'))
writeFileSync(
  join(target, 'README.md'),
  `# ${name}

\`npm run demo -- --seed ${config.seed}${feedback ? '' : ' --no-feedback'}\` made it: 64 px scenes of one to three emoji of two vendors (twitter, google) on eight
backgrounds, ${(size / 1e6).toFixed(2)} MB of bf16. \`report.html\` shows what it can do and what it cannot; these are its figures before the rounding to bf16.

| unseen scenes | % | 95 % interval | |
| --- | --- | --- | --- |
${row('existence, vendors it trained on', results.existence.seen)}
${row('existence, a vendor it never saw', results.existence.unseen)}
${row('background, vendors it trained on', results.background.seen)}
${row('background, a vendor it never saw', results.background.unseen)}
${row('painted background as asked', results.painted_background)}
${row('objects that captions name, vendors it trained on', results.captioned_objects.seen)}
${row('objects that captions name, a vendor it never saw', results.captioned_objects.unseen)}

It knows the ${tokenizer.vocabSize} words of those scenes and nothing else: questions about existence, count and background it answers well, about
places, orientation and relations hardly better than chance.
`,
)
console.log(`${target}: ${size} bytes of weights`)
if (size > limit) {
  console.error(`more than ${limit} bytes`)
  process.exit(1)
}
