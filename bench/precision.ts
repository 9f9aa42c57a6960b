// npm run bench:precision -- [--draws N] [--store] [--float64]
//
// How far ours and PyTorch are from f32 when both compute in bf16, on every stored case of operations, modules and the whole model: the root
// mean square of the relative L2 errors of a case's outputs, and of its gradients. Exits 1 where ours is over twice PyTorch's, or where a
// single output is. In N draws (default 40) each case runs again on weights and inputs changed by a rounding's size, and medians are compared: where
// errors grow from layer to layer, one run is off by half or by ten times as much as the next, ours and PyTorch's alike. Medians of 6 draws of five
// training steps differ by a factor of two once in twenty times where there is no difference. --store writes PyTorch's errors to
// test/fixtures/bf16.json, the limits of `npm run parity -- --dtype bf16`. --float64 writes test/fixtures/float64.json instead (lib/parity/float64.ts) and measures nothing else. Needs
// python3 with torch.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { python } from './peers/index.js'

const root = fileURLToPath(new URL('../', import.meta.url))
const fixtures = join(root, 'test/fixtures')
const places = ['ops', 'modules', 'model']
const parts = ['outputs', 'gradients'] as const
type Part = (typeof parts)[number]
/** Of each output and gradient: one a draw. */
type Errors = Record<Part, Record<string, number[]>>

const rms = (values: readonly number[]) => Math.sqrt(values.reduce((a, v) => a + v * v, 0) / values.length)
function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const half = sorted.length >> 1
  return sorted.length % 2 ? (sorted[half] as number) : ((sorted[half - 1] as number) + (sorted[half] as number)) / 2
}
const factor = 2
/** As in lib/parity/bf16.ts: what rounding alone may cost. */
const least = 2 ** -9
/** The stored limits are the largest errors of so many draws: of more they would be wider. */
const storedDraws = 6

const { values: flags } = parseArgs({
  options: {
    draws: { type: 'string', default: '40' },
    store: { type: 'boolean', default: false },
    float64: { type: 'boolean', default: false },
  },
})
const draws = Number(flags.draws)
if (!Number.isInteger(draws) || draws < 0 || draws > 100) {
  console.error(`--draws must be a whole number up to 100 but is '${flags.draws}'`)
  process.exit(2)
}

const script = join(root, 'bench/peers/torch/precision.py')
if (flags.float64) {
  writeFileSync(join(fixtures, 'float64.json'), `${run(python(), [script, fixtures, '--float64'], [0])}\n`)
  process.exit(0)
}

const wrong = (own: number, theirs: number) => !(own <= factor * Math.max(theirs, least))

function run(command: string, args: readonly string[], accept: readonly number[]): string {
  const { status, stdout, error } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 1 << 30,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  if (error || status === null || !accept.includes(status))
    throw error ?? new Error(`${command} ${args[0]} ended with ${status}`)
  return stdout
}

/** Ours on the stored cases, then on those of each draw. */
function ours(written: string): Map<string, Record<Part, Record<string, number>>>[] {
  const folders = [
    places.map((p) => join(fixtures, p)),
    ...Array.from({ length: draws }, (_, i) => [join(written, `${i + 1}`)]),
  ]
  return folders.map((paths) => {
    const args = [join(root, 'dist/parity/cli.js'), ...paths, '--dtype', 'bf16', '--json', '--tensors']
    const { results } = JSON.parse(run(process.execPath, args, [0, 1])) as {
      results: { kind: string; tensors?: Record<Part, Record<string, number>> }[]
    }
    return new Map(results.flatMap(({ kind, tensors }) => (tensors ? [[kind, tensors]] : [])))
  })
}

const written = mkdtempSync(join(tmpdir(), 'deem-precision-'))
try {
  const { torch, cases } = JSON.parse(
    run(python(), [script, fixtures, '--draws', `${draws}`, '--write', written], [0]),
  ) as { torch: string; cases: Record<string, Errors> }
  const mine = ours(written)
  const over: string[] = []
  console.log(`relative L2 errors in bf16, median of ${draws + 1} draws, PyTorch ${torch}`)
  console.log(`${'case'.padEnd(28)} ${'of'.padEnd(10)} tensors  PyTorch     ours  ratio   stored case alone`)
  for (const [kind, errors] of Object.entries(cases))
    for (const part of parts) {
      // Operations have one draw: their errors do not grow.
      const rows = Object.entries(errors[part]).map(([name, theirs]) => ({
        name,
        theirs,
        own: theirs.map((_, draw) => mine[draw]?.get(kind)?.[part][name] ?? Number.NaN),
      }))
      if (rows.length === 0) continue
      const each = (side: 'theirs' | 'own') =>
        (rows[0]?.theirs ?? []).map((_, draw) => rms(rows.map((r) => r[side][draw] as number)))
      const [theirs, own] = [median(each('theirs')), median(each('own'))]
      const first = [each('theirs')[0] as number, each('own')[0] as number] as const
      const ratio = (a: number, b: number) => (Math.max(a, b) < 1e-6 ? '1.00' : (b / a).toFixed(2))
      // Steps of an optimizer build on each other: judged as a whole.
      const single = part === 'outputs' && kind !== 'model/deem_nano_train'
      const bad = single ? rows.filter((r) => wrong(median(r.own), median(r.theirs))) : []
      if (wrong(own, theirs)) over.push(`${kind}: ${part}`)
      over.push(...bad.map((r) => `${kind}: ${r.name}, ${median(r.own).toExponential(1)}`))
      const cells = [`${rows.length}`.padStart(7), theirs.toExponential(2), own.toExponential(2)]
      console.log(
        `${kind.padEnd(28)} ${part.padEnd(10)} ${cells.join(' ')}   ${ratio(theirs, own)}   ${ratio(...first)}`,
      )
    }
  if (flags.store) store(torch, cases)
  for (const line of over) console.log(`over twice PyTorch's: ${line}`)
  if (over.length > 0) process.exitCode = 1
} finally {
  rmSync(written, { recursive: true })
}

function store(torch: string, cases: Record<string, Errors>): void {
  const short = (v: number) => Number(v.toPrecision(2))
  const stored = Object.entries(cases).map(([kind, { outputs, gradients }]) => {
    const first = (of: number[]) => of.slice(0, storedDraws)
    const all = Object.values(gradients).flatMap(first)
    const entry = {
      outputs: Object.fromEntries(Object.entries(outputs).map(([name, of]) => [name, short(Math.max(...first(of)))])),
      ...(all.length > 0 && { gradients: { rms: short(rms(all)), worst: short(Math.max(...all)) } }),
    }
    return ` ${JSON.stringify(kind)}: ${JSON.stringify(entry)}`
  })
  const path = join(fixtures, 'bf16.json')
  writeFileSync(
    path,
    `{"torch": "${torch}", "draws": ${Math.min(storedDraws, draws + 1)}, "cases": {\n${stored.join(',\n')}\n}}\n`,
  )
  JSON.parse(readFileSync(path, 'utf8'))
}
