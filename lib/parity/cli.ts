/** `npm run parity -- DIR...`: every case below the folders against its stored numbers. */
import { relative } from 'node:path'
import { Command, InvalidArgumentError } from 'commander'
import { DeemError } from '../errors.js'
import { type Device, setDefaultDevice } from '../system.js'
import { bf16Errors, judge } from './bf16.js'
import { type Case, findCases, kindOf, loadCase } from './case.js'
import type { Comparison, ComputeType } from './compare.js'
import { runDeem, runDeemTrain } from './kinds/deem.js'
import { runGenerate } from './kinds/generate.js'
import { moduleRunner } from './kinds/modules.js'
import { opRunner } from './kinds/ops.js'
import { runSchedulers } from './kinds/schedulers.js'
import { runTokenizer } from './kinds/tokenizer.js'
import { runLayout } from './kinds/weights.js'
import { absent, type Timing } from './program.js'

type Runner = (c: Case, repeat: number, timing: Timing) => Promise<Comparison[]>

function runnerFor(kind: string): Runner {
  const [place, name] = kind.split('/') as [string, string]
  const whole: Record<string, Runner> = {
    'model/deem_nano': runDeem,
    'model/deem_nano_train': runDeemTrain,
    'model/deem_nano_generate': runGenerate,
    schedulers: runSchedulers,
    tokenizer: runTokenizer,
  }
  const places: Record<string, () => Runner | undefined> = {
    ops: () => opRunner(name),
    modules: () => moduleRunner(name),
    hf_layout: () => runLayout,
  }
  const runner = whole[kind] ?? places[place]?.()
  if (!runner) throw new DeemError('ERR_NOT_IMPLEMENTED', `unknown kind of case '${kind}'`)
  return runner
}

interface Worst {
  maxAbs: number
  maxRel: number
}
type Errors = Record<'outputs' | 'gradients', Record<string, number>>
interface Result {
  case: string
  kind: string
  ok: boolean
  compared: number
  outputs: Worst
  gradients: Worst
  failures: string[]
  /** What agrees with float64 where the stored float32 does not. */
  float64?: string[]
  /** Why there is nothing to compare. */
  skipped?: string
  /** With --tensors: the error of every output and gradient. */
  tensors?: Errors
  forwardMs?: number
  backwardMs?: number
}

function worst(list: Comparison[]): Worst {
  const largest = (values: number[]) => values.reduce((a, v) => (v > a || Number.isNaN(v) ? v : a), 0)
  return { maxAbs: largest(list.map((c) => c.maxAbs)), maxRel: largest(list.map((c) => c.maxRel)) }
}

function median(values: readonly number[]): number | undefined {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[sorted.length >> 1]
}

function errorsOf(comparisons: readonly Comparison[]): Errors {
  const of = (gradient: boolean) =>
    Object.fromEntries(comparisons.filter((c) => c.gradient === gradient).map((c) => [c.name, c.error]))
  return { outputs: of(false), gradients: of(true) }
}

async function runCase(dir: string, dtype: ComputeType, repeat: number, tensors: boolean): Promise<Result> {
  const kind = kindOf(dir)
  const timing: Timing = { forward: [], backward: [] }
  const result: Result = {
    case: relative(process.cwd(), dir),
    kind,
    ok: false,
    compared: 0,
    outputs: { maxAbs: Number.NaN, maxRel: Number.NaN },
    gradients: { maxAbs: 0, maxRel: 0 },
    failures: [],
  }
  try {
    const stored = await loadCase(dir, dtype)
    const runner = runnerFor(kind)
    if (dtype !== 'f32' && kind === 'model/deem_nano_generate') {
      result.skipped = 'ids and pictures of another dtype are others, and stored are those of f32'
      return result
    }
    let comparisons = await runner(stored, repeat, timing)
    comparisons.push(...uncompared(stored, comparisons))
    const measured = dtype === 'bf16' ? bf16Errors(dir, kind) : undefined
    if (measured) comparisons = judge(comparisons, measured)
    result.compared = comparisons.length
    result.outputs = worst(comparisons.filter((c) => !c.gradient))
    result.gradients = worst(comparisons.filter((c) => c.gradient))
    result.failures = comparisons
      .filter((c) => !c.ok)
      .map(
        (c) =>
          `${c.gradient ? 'gradient of ' : ''}${c.name}: abs ${format(c.maxAbs)} rel ${format(c.maxRel)}, allowed ${c.allowed}`,
      )
    const beside64 = comparisons.filter((c) => c.float64).map((c) => c.name)
    if (beside64.length > 0) result.float64 = beside64
    if (tensors) result.tensors = errorsOf(comparisons)
    result.ok = comparisons.length > 0 && result.failures.length === 0
    if (comparisons.length === 0) result.failures.push('nothing was compared')
  } catch (error) {
    result.failures.push(
      DeemError.isInstance(error) ? `${error.code}: ${error.message}` : String((error as Error).stack ?? error),
    )
  }
  if (repeat > 0) {
    const [forwardMs, backwardMs] = [median(timing.forward), median(timing.backward)]
    if (forwardMs !== undefined) result.forwardMs = forwardMs
    if (backwardMs !== undefined) result.backwardMs = backwardMs
  }
  return result
}

/** What is stored and nobody looked at, and outputs with a cotangent that are not stored: a case is right only as a whole. */
function uncompared(stored: Case, comparisons: readonly Comparison[]): Comparison[] {
  const seen = (gradient: boolean) => new Set(comparisons.filter((c) => c.gradient === gradient).map((c) => c.name))
  const missing = (names: string[], gradient: boolean) => {
    const done = seen(gradient)
    return names.filter((name) => !done.has(name)).map((name) => absent(name, gradient))
  }
  const lost = Object.keys(stored.inputs)
    .filter((name) => cotangent.test(name))
    .map((name) => name.replace(cotangent, '$1'))
    .filter((name) => !stored.outputs[name])
    .map((name) => ({ ...absent(name, false), allowed: 'it has a cotangent but is not stored' }))
  return [...missing(Object.keys(stored.outputs), false), ...missing(Object.keys(stored.grads), true), ...lost]
}

const cotangent = /^(.*\.|)ct\./

const format = (v: number) => v.toExponential(1)

function line(r: Result): string {
  if (r.skipped) return `${r.case.padEnd(52)} skipped: ${r.skipped}`
  const time = (name: string, ms?: number) => (ms === undefined ? '' : `  ${name} ${ms.toFixed(2)} ms`)
  const times = time('forward', r.forwardMs) + time('backward', r.backwardMs)
  const out = `outputs ${format(r.outputs.maxAbs)} ${format(r.outputs.maxRel)}`
  const grad = `gradients ${format(r.gradients.maxAbs)} ${format(r.gradients.maxRel)}`
  const by64 = r.float64 ? `, beside float64: ${r.float64.join(', ')}` : ''
  return `${r.case.padEnd(52)} ${out}  ${grad}  ${r.ok ? 'ok' : 'FAIL'}${by64}${times}`
}

function whole(text: string): number {
  const n = Number(text)
  if (!Number.isInteger(n) || n < 0 || n > 1e6) throw new InvalidArgumentError('needs a whole number.')
  return n
}

const program = new Command('parity')
  .description('Runs every case below the folders through the public native path and compares with its stored numbers.')
  .argument('<dir...>', 'folders to search for cases (folders with config.json)')
  .option('--json', 'print one JSON object')
  .option('--tensors', 'with the relative L2 error of every output and gradient in it', false)
  .option('--repeat <n>', 'also print median forward and backward milliseconds of n runs', whole, 0)
  .option('--dtype <dtype>', 'f32, bf16 or f16', 'f32')
  .option('--device <device>', 'cpu or cuda', 'cpu')
  .action(
    async (
      dirs: string[],
      options: { json?: boolean; tensors: boolean; repeat: number; dtype: string; device: string },
    ) => {
      if (options.dtype !== 'f32' && options.dtype !== 'bf16' && options.dtype !== 'f16')
        throw new DeemError('ERR_DTYPE', `--dtype must be f32, bf16 or f16 but is '${options.dtype}'`)
      setDefaultDevice(options.device as Device)
      const results: Result[] = []
      for (const dir of findCases(dirs)) {
        const r = await runCase(dir, options.dtype, options.repeat, options.tensors)
        results.push(r)
        if (options.json) continue
        console.log(line(r))
        for (const failure of r.failures.slice(0, 10)) console.log(`    ${failure}`)
        if (r.failures.length > 10) console.log(`    and ${r.failures.length - 10} more`)
      }
      const skipped = results.filter((r) => r.skipped).length
      const failed = results.filter((r) => !r.ok && !r.skipped).length
      if (options.json) console.log(JSON.stringify({ dtype: options.dtype, device: options.device, results }, null, 1))
      else
        console.log(`${results.length - failed - skipped} ok, ${failed} failed${skipped ? `, ${skipped} skipped` : ''}`)
      if (failed > 0 || results.length === skipped) process.exitCode = 1
    },
  )

try {
  await program.parseAsync()
} catch (error) {
  console.error(DeemError.isInstance(error) ? `${error.code}: ${error.message}` : error)
  process.exitCode = 1
}
