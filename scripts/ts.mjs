// npm run build:ts: types with tsc, programs with rolldown, into dist/. Every module of lib/ has its file there, but most are only names: what
// an entry of the package reaches is written as one file a program, since Node spends half a millisecond on every module it loads.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import { rolldown } from 'rolldown'

const root = fileURLToPath(new URL('..', import.meta.url))
const lib = join(root, 'lib')
const dist = join(root, 'dist')
const dependencies = Object.keys(JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).dependencies)
/** Each gathers what it reaches and those before it do not. */
const programs = ['index', 'train/index', 'cli/main', 'demo/main']

function checkTypes() {
  const tsc = join(root, 'node_modules/typescript/bin/tsc')
  const { status, error } = spawnSync(process.execPath, [tsc, '-p', 'tsconfig.json', '--emitDeclarationOnly'], {
    cwd: root,
    stdio: 'inherit',
  })
  if (error) throw error
  if (status !== 0) process.exit(status ?? 1)
}

const isOurs = (id) => id.startsWith(lib + sep)

/** Programs are written anew; what tsc wrote goes where its source is gone. */
function clean() {
  for (const file of readdirSync(dist, { recursive: true })) {
    const source = join(lib, file.replace(/\.d\.ts(\.map)?$/, '.ts'))
    if (/\.js(\.map)?$/.test(file) || (/\.d\.ts(\.map)?$/.test(file) && !existsSync(source))) rmSync(join(dist, file))
  }
}

/** The modules that each program imports before it starts, programs left out: whoever imports one of the others must not start them. */
function owners(moduleInfo) {
  const owner = new Map()
  const entries = new Set(programs.map((program) => join(lib, `${program}.ts`)))
  for (const program of programs) {
    const own = join(lib, `${program}.ts`)
    const reached = new Set([own])
    for (const id of reached) {
      for (const next of moduleInfo(id)?.importedIds ?? []) if (isOurs(next)) reached.add(next)
      if (!entries.has(id) && !owner.has(id)) owner.set(id, program)
    }
  }
  return owner
}

async function bundle() {
  const sources = readdirSync(lib, { recursive: true }).filter((f) => f.endsWith('.ts') && !f.endsWith('.d.ts'))
  const build = await rolldown({
    input: Object.fromEntries(sources.map((f) => [f.slice(0, -3), join(lib, f)])),
    platform: 'node',
    external: (id) => dependencies.some((name) => id === name || id.startsWith(`${name}/`)),
    transform: { target: 'es2023' }, // `using` becomes try and finally
    preserveEntrySignatures: 'strict',
  })
  let owner
  const { output } = await build.write({
    dir: dist,
    format: 'esm',
    sourcemap: true,
    minifyInternalExports: false,
    entryFileNames: '[name].js',
    chunkFileNames: '_shared/[name].js',
    codeSplitting: {
      groups: programs.map((program, i) => ({
        debugName: program,
        priority: programs.length - i,
        name: (id, context) => {
          owner ??= owners((other) => context.getModuleInfo(other))
          return owner.get(id) === program ? program.replace('/', '-') : null
        },
      })),
    },
  })
  // What \0 begins is rolldown's own; anything else has to be a dependency, with its licence.
  const strange = output.flatMap(({ moduleIds = [] }) => moduleIds).find((id) => !isOurs(id) && !id.startsWith('\0'))
  if (strange) throw new Error(`${strange} would become a part of the package: it is no dependency in package.json`)
}

checkTypes()
clean()
await bundle()
