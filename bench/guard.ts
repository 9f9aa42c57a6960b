// npm run bench:guard [-- --update] [-- NAME...]
//
// Counts the instructions of a few kernels under callgrind and compares them with bench/guard.json: counts, since seconds on a shared
// machine say nothing about a change of 5 %. Two numbers of runs are counted and their difference taken, so start-up cancels out. Kernels run as
// a machine with AVX2 would (callgrind knows no AVX-512), on one thread. Exits 1 where a kernel takes over 5 % more; `--update` stores the
// counts. Another compiler makes other code: with one that the stored counts were not made with, nothing is compared, and it says so.
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

interface Stored {
  compiler: string
  instructions: Record<string, number>
}

const root = fileURLToPath(new URL('..', import.meta.url))
const path = `${root}bench/guard.json`
const tolerance = 0.05
const runs = [2, 6] as const

function run(command: string, args: string[], env: Record<string, string> = {}): { stdout: string; stderr: string } {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  })
  if (error && 'code' in error && error.code === 'ENOENT') {
    console.error(`${command} is missing. Type:\n  apt-get install ${command}`)
    process.exit(2)
  }
  if (error || status !== 0) {
    console.error(`${command} ${args.join(' ')} failed: ${error?.message ?? (stderr || stdout).slice(-800)}`)
    process.exit(2)
  }
  return { stdout, stderr }
}

const binary = `${root}build-cmake/deem-guard`
function count(name: string, times: number): number {
  const { stderr } = run(
    'valgrind',
    ['--tool=callgrind', '--callgrind-out-file=/dev/null', binary, name, String(times)],
    { DEEM_ISA: 'avx2', DEEM_THREADS: '1', OMP_NUM_THREADS: '1' },
  )
  const collected = /Collected : (\d+)/.exec(stderr)?.[1]
  if (!collected) throw new Error(`callgrind said: ${stderr.slice(-400)}`)
  return Number(collected)
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { update: { type: 'boolean', default: false } },
})
run('cmake', ['--build', 'build-cmake', '--target', 'deem-guard', '--parallel', '2'])
const compiler = run('c++', ['--version']).stdout.split('\n')[0] as string
const stored: Stored = JSON.parse(readFileSync(path, 'utf8'))
const names = run(binary, []).stdout.trim().split('\n')
const chosen = positionals.length > 0 ? names.filter((n) => positionals.includes(n)) : names
if (chosen.length === 0) {
  console.error(`no kernel is called ${positionals.join(', ')}; known are ${names.join(', ')}`)
  process.exit(2)
}
const comparable = stored.compiler === compiler
if (!comparable && !values.update)
  console.log(`nothing is compared: the counts were stored with '${stored.compiler}', this is '${compiler}'`)

let slower = 0
const counted: Record<string, number> = values.update && positionals.length > 0 ? { ...stored.instructions } : {}
for (const name of chosen) {
  const [few, many] = runs
  const now = Math.round((count(name, many) - count(name, few)) / (many - few))
  counted[name] = now
  const before = stored.instructions[name]
  const change = before === undefined ? undefined : now / before - 1
  const over = change !== undefined && change > tolerance
  const verdict = change === undefined ? 'new' : `${change >= 0 ? '+' : ''}${(100 * change).toFixed(2)} %`
  const hint = over ? '  MORE' : change !== undefined && change < -tolerance ? '  fewer: --update keeps it so' : ''
  console.log(`${name.padEnd(26)} ${String(now).padStart(12)} instructions  ${verdict}${hint}`)
  if (comparable && !values.update && (over || change === undefined)) slower++
}
if (values.update) writeFileSync(path, `${JSON.stringify({ compiler, instructions: counted }, null, 2)}\n`)
else if (slower > 0) {
  console.error(`${slower} kernels take over ${100 * tolerance} % more instructions than stored, or are not stored yet`)
  process.exit(1)
}
