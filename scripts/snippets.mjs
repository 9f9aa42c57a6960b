// The TypeScript that the documentation shows, compiled: every ```ts block of README.md, docs/ and the docstrings of lib/.
// Each is a module of its own in .example-build/snippets; the compiler's complaints name the file and line it stands at.
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const out = join(root, '.example-build/snippets')

const list = (folder, ending) =>
  readdirSync(join(root, folder), { recursive: true })
    .filter((name) => name.endsWith(ending) && !name.includes('node_modules'))
    .map((name) => join(folder, name))
const sources = ['README.md', ...list('docs', '.md'), ...list('lib', '.ts')].sort()

rmSync(out, { recursive: true, force: true })
mkdirSync(out, { recursive: true })
const origin = new Map()
for (const source of sources) {
  const lines = readFileSync(join(root, source), 'utf8').split('\n')
  const bare = source.endsWith('.ts') ? lines.map((line) => line.replace(/^\s*\* ?/, '')) : lines
  for (let i = 0; i < bare.length; i++) {
    if (bare[i].trimEnd() !== '```ts') continue
    const end = bare.indexOf('```', i + 1)
    if (end < 0) throw new Error(`${source}:${i + 1} begins a block that never ends`)
    const name = `s${origin.size}.ts`
    origin.set(name, { source, line: i + 1 })
    writeFileSync(join(out, name), [...bare.slice(i + 1, end), 'export {}', ''].join('\n'))
    i = end
  }
}
if (origin.size === 0) throw new Error('no snippet was found')
const options = { rootDir: '.', noEmit: true, declaration: false, declarationMap: false, noUnusedLocals: false }
writeFileSync(
  join(out, 'tsconfig.json'),
  JSON.stringify({ extends: '../../tsconfig.json', compilerOptions: options, include: ['.'] }),
)
const { status, stdout } = spawnSync(
  process.execPath,
  [join(root, 'node_modules/typescript/bin/tsc'), '-p', '.', '--pretty', 'false'],
  { cwd: out, encoding: 'utf8' },
)
process.stdout.write(
  stdout.replaceAll(/^(s\d+\.ts)\((\d+),/gm, (_, name, line) => {
    const { source, line: start } = origin.get(name)
    return `${source}:${start + Number(line)} (`
  }),
)
if (status === 0) console.log(`${origin.size} snippets compile`)
process.exit(status ?? 1)
