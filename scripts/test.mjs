// npm test: lint, native build, types, tests, then a line `N passed, N failed`.
//   npm test -- test/ops/conv2d.ts ...   only these files, without lint
//   npm test -- --native                 also the native tests under AddressSanitizer and UBSan
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const native = process.argv.includes('--native')
const chosen = process.argv.slice(2).filter((a) => !a.startsWith('--'))
const jobs = process.env.DEEM_JOBS ?? String(Math.min(availableParallelism(), 8))
const total = { passed: 0, failed: 0 }

function finish() {
  console.log(`${total.passed} passed, ${total.failed} failed`)
  process.exit(total.failed > 0 || total.passed === 0 ? 1 : 0)
}

/** Runs one step; a failure ends everything, since what follows would test something else than what is written. */
function step(name, command, args) {
  const start = Date.now()
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (status === 0) return console.log(`${name}: ${((Date.now() - start) / 1000).toFixed(1)} s`)
  console.error(`${name} failed${error ? `: ${error.message}` : ''}`)
  total.failed++
  finish()
}

const node = (script, ...args) => [process.execPath, [join(root, script), ...args]]
const tsc = (project) => node('node_modules/typescript/bin/tsc', '-p', project)

/** Removes outputs whose source is gone: the test runner would still find them. */
function prune(out, source) {
  if (!existsSync(join(root, out))) return
  for (const file of readdirSync(join(root, out), { recursive: true })) {
    const stem = file.replace(/\.(d\.ts|js|js\.map|d\.ts\.map)$/, '')
    if (stem !== file && !existsSync(join(root, source, `${stem}.ts`))) rmSync(join(root, out, file))
  }
}

/** Runs ava and counts. Passing tests are listed for single files; of failing ones everything ava says is shown. */
async function ava(files) {
  const args = [
    '--tap',
    ...files.map((f) => join('.test-build', relative(join(root, 'test'), f).replace(/\.ts$/, '.js'))),
  ]
  const child = spawn(...node('node_modules/ava/entrypoints/cli.mjs', ...args), {
    cwd: root,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const before = total.passed + total.failed
  let failing = false
  for await (const line of createInterface({ input: child.stdout })) {
    const [, verdict, title, directive] = /^(ok|not ok) \d+ - (.*?)(?: # (SKIP|TODO).*)?$/.exec(line) ?? []
    if (verdict) {
      failing = verdict === 'not ok' && !directive
      const word = directive?.toLowerCase() ?? (failing ? 'FAIL' : 'ok  ')
      if (word !== 'ok  ' || files.length > 0) console.log(`${word} ${title}`)
      if (!directive) total[failing ? 'failed' : 'passed']++
    } else if (/^# {3}/.test(line)) {
      if (failing || files.length > 0) console.log(line.slice(2)) // t.log()
    } else if (!/^(TAP version|1\.\.|# |\s*$|\s+(---|\.\.\.)$)/.test(line)) {
      console.log(line) // what a failing test says, and the output of tests
    }
  }
  const code = child.exitCode ?? (await new Promise((done) => child.once('close', done)))
  if (code !== 0 && total.failed === 0) {
    console.log(`FAIL the test runner ended with ${code}`)
    total.failed++
  }
  if (total.passed + total.failed === before) {
    console.log('FAIL no test ran')
    total.failed++
  }
}

/** The native tests, built with sanitizers in build-asan/. */
function sanitized() {
  step('native tests: configure', 'cmake', ['--preset', 'asan'])
  step('native tests: build', 'cmake', ['--build', '--preset', 'asan', '--parallel', jobs])
  const { stdout, status } = spawnSync('build-asan/deem-native-tests', [], {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  process.stdout.write(stdout ?? '')
  const [, passed, failed] = /^(\d+) passed, (\d+) failed$/m.exec(stdout ?? '') ?? []
  total.passed += Number(passed ?? 0)
  total.failed += Number(failed ?? 0)
  if (status !== 0 && !Number(failed)) total.failed++ // a sanitizer ended it
}

const files = chosen.map((f) => resolve(f))
for (const f of files)
  if (!existsSync(f) || !f.endsWith('.ts') || relative(join(root, 'test'), f).startsWith('..')) {
    console.error(`not a test file: ${relative(root, f)}`)
    process.exit(2)
  }
if (files.length === 0) step('lint', ...node('scripts/lint.mjs'))
step('native build', ...node('scripts/native.mjs'))
if (files.length === 0) step('kernels', ...node('scripts/check-kernels.mjs'))
prune('.test-build', 'test')
step('types', ...node('scripts/ts.mjs'))
step('test build', ...tsc('test/tsconfig.json'))
if (files.length === 0) step('snippets', ...node('scripts/snippets.mjs'))
step('examples', ...tsc('examples/tsconfig.json'))
await ava(files)
if (native) sanitized()
finish()
