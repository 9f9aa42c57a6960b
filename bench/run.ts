// npm run bench -- [FILTER...] [--dtype f32|bf16]... [--threads N]... [--peer NAME]... [--repeats N] [--name NAME] [--json] [--list]
//
// Times every case whose name holds one of the filters, ours and each peer in turn, after checking that they compute the same. Prints a
// table and writes bench/results/NAME.json. Exits 1 if some result was wrong or a case of ours failed, 2 for arguments it does not know.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { emptyCache, memory, resetPeakMemory, setThreads, threads, writeTensors } from 'deem'
import { type Case, type PeerName, type Precision, peerNames, wantsGradient } from './case.js'
import { cases } from './cases/index.js'
import { beyondRounding, compare, type Numbers, numbersOf } from './compare.js'
import { machine, resetResidentPeak, resident, residentPeak } from './machine.js'
import { inProcess, measure, type Side } from './measure.js'
import { opSubject } from './ours/ops.js'
import { keepModule, partSubject, releaseModule } from './ours/parts.js'
import { disposeAll, type Subject } from './ours/subject.js'
import { wholeSubject } from './ours/whole.js'
import { floor, measurePeak, type Peak, peakProduct, peakSum } from './peak.js'
import { type PeerKind, peerKinds } from './peers/index.js'
import { Peer, PeerError } from './peers/process.js'
import { columns, lines, type PeerResult, type Report, type Result } from './report.js'

const makers = { op: opSubject, part: partSubject, whole: wholeSubject }

interface Running {
  kind: PeerKind
  peer: Peer
}

interface Options {
  threads: number[]
  repeats: number
  folder: string
  peak(precision: Precision, threads: number): Peak
}

function usage(message: string): never {
  console.error(message)
  process.exit(2)
}

function whole(text: string, name: string): number {
  const n = Number(text)
  if (!Number.isSafeInteger(n) || n < 1) usage(`--${name} must be a whole number of at least 1 but is '${text}'`)
  return n
}

function oneOf<T extends string>(text: string, known: readonly T[], name: string): T {
  const found = known.find((k) => k === text)
  return found ?? usage(`--${name} must be one of ${known.join(', ')} but is '${text}'`)
}

async function startPeers(names: readonly PeerName[], versions: Report['versions']): Promise<Running[]> {
  const out: Running[] = []
  for (const kind of peerKinds.filter((k) => names.includes(k.name))) {
    if (!kind.installed()) {
      console.error(`${kind.name} is not installed; going on without it (torch: pip install torch).`)
      continue
    }
    out.push(await start(kind, versions))
  }
  return out
}

async function start(kind: PeerKind, versions: Report['versions']): Promise<Running> {
  const { command, args } = kind.command()
  const { peer, versions: own } = await Peer.start(kind.name, command, args)
  versions[kind.name] = own
  return { kind, peer }
}

const message = (error: unknown) => (error instanceof Error ? error.message : String(error)).slice(0, 400)

const resultsOf = (kind: PeerKind, options: Options) => join(options.folder, `${kind.name}.safetensors`)

/** Gives a peer its inputs and weights, and compares what it makes of them. */
async function prepare(
  { kind, peer }: Running,
  c: Case,
  precision: Precision,
  subject: Subject,
  ours: Record<string, Parameters<typeof compare>[2][string]>,
  options: Options,
): Promise<PeerResult> {
  const result: PeerResult = { peer: kind.name }
  const wants =
    c.pass === 'backward' ? Object.entries(c.inputs).flatMap(([name, s]) => (wantsGradient(s) ? [name] : [])) : []
  const { name, group, program, pass } = c
  try {
    await peer.ask({
      do: 'load',
      case: { name, group, program, pass, precision, wants, settings: { ...c.settings, ...subject.settings } },
      inputs: join(options.folder, 'inputs.safetensors'),
      weights: subject.weights ? join(options.folder, 'weights.safetensors') : null,
      key: subject.weights?.key ?? null,
      threads: options.threads[0] as number,
    })
    const path = resultsOf(kind, options)
    const reply = await peer.ask({ do: 'results', path })
    // A peer that cannot run the same weights says so; its speed is still that of the same shapes.
    if (reply['unchecked'] !== true && !c.unchecked?.includes(precision)) {
      const all = await compare(c, precision, ours, path)
      const wrong = all.filter((x) => !(x.error <= x.limit))
      if (wrong.length > 0) result.wrong = wrong
      const worst = all.reduce((a, b) => (b.error / b.limit > a.error / a.limit ? b : a))
      result.worst = worst
    }
  } catch (error) {
    if (!(error instanceof PeerError)) throw error
    result.problem = error.unsupported ? `not for it: ${error.message}` : error.message
  }
  return result
}

async function numbersInF32(c: Case): Promise<Numbers> {
  using subject = await makers[c.group](c, 'f32')
  const results = await subject.results()
  try {
    return numbersOf(results)
  } finally {
    disposeAll(results)
    releaseModule()
    emptyCache()
  }
}

async function runCase(c: Case, precision: Precision, peers: Running[], options: Options): Promise<Result[]> {
  const work = c.work(precision === 'f32' ? 4 : 2)
  const base = { case: c.name, group: c.group, pass: c.pass, precision, ...work }
  if (!keepModule(c, precision)) {
    emptyCache()
    residentBefore = resident()
  }
  let subject: Subject
  try {
    setThreads(options.threads[0] as number)
    subject = await makers[c.group](c, precision)
  } catch (error) {
    return options.threads.map((n) => ({ ...base, threads: n, peers: [], problem: message(error) }))
  }
  const results: Result[] = []
  try {
    const able = peers.filter(({ kind }) => kind.takes(c, precision))
    if (able.length > 0) {
      await writeTensors(join(options.folder, 'inputs.safetensors'), { ...subject.inputs })
      if (subject.weights && subject.weights.key !== savedKey) {
        await subject.weights.save(join(options.folder, 'weights.safetensors'))
        savedKey = subject.weights.key
      }
    }
    const ours = await subject.results()
    const prepared: PeerResult[] = []
    for (const running of able) prepared.push(await prepare(running, c, precision, subject, ours, options))
    const numbers = precision === 'bf16' && prepared.some((p) => p.wrong) ? numbersOf(ours) : undefined
    disposeAll(ours)
    if (numbers) {
      // Parts share one model at a time.
      subject[Symbol.dispose]()
      const f32 = await numbersInF32(c)
      subject = await makers[c.group](c, precision)
      for (const [i, { kind }] of able.entries()) {
        const p = prepared[i] as PeerResult
        if (!p.wrong) continue
        const wrong = await beyondRounding(p.wrong, numbers, resultsOf(kind, options), f32)
        if (wrong.length > 0) p.wrong = wrong
        else delete p.wrong
      }
    }
    for (const n of options.threads) {
      setThreads(n)
      const ready = able.filter((_, i) => !prepared[i]?.problem && !prepared[i]?.wrong)
      for (const { peer } of ready) await peer.ask({ do: 'threads', threads: n })
      const sides: Side[] = [
        inProcess('ours', (times) => subject.run(times)),
        ...ready.map(({ kind, peer }) => ({
          name: kind.name,
          run: async (batches: number, runs: number) =>
            (await peer.ask({ do: 'run', batches, runs }))['seconds'] as number[],
        })),
      ]
      const least = floor(work, options.peak(precision, n))
      const bounded = work[least.bound] > 0
      // What takes long meets another machine than the one that was measured first: clocks and memory change by the minute.
      using peak =
        bounded && c.group !== 'op' ? (least.bound === 'flops' ? peakProduct(precision) : peakSum()) : undefined
      if (peak)
        sides.push(
          inProcess('peak', async (times) => {
            for (let i = 0; i < times; i++) peak.run()
          }),
        )
      const { timings, ratios } = await measure(sides, options.repeats)
      const beside = ratios.find(({ name }) => name === 'peak')?.ratio.median
      peak?.[Symbol.dispose]() // its arrays are no part of the memory of a step
      emptyCache() // of what drawing weights and comparing results took
      resetPeakMemory()
      const resets = resetResidentPeak()
      await subject.run(1)
      const most = residentPeak()
      const tensorBytes = memory().peak
      const ourTime = timings[0] as (typeof timings)[number]
      const rows = prepared.map(async (p): Promise<PeerResult> => {
        const i = ready.findIndex(({ kind }) => kind.name === p.peer)
        const [timing, ratio, running] = [timings[i + 1], ratios[i], ready[i]]
        if (i < 0 || !timing || !ratio || !running) return p
        const { bytes } = await running.peer.ask({ do: 'peak' })
        return {
          ...p,
          seconds: timing.seconds,
          ratio: ratio.ratio,
          ...(typeof bytes === 'number' && { residentBytes: bytes }),
        }
      })
      results.push({
        ...base,
        threads: n,
        seconds: ourTime.seconds,
        times: ourTime.times,
        ...(bounded && {
          bound: least.bound,
          rate: work[least.bound] / ourTime.seconds.median,
          fractionOfPeak:
            peak && beside ? (work[least.bound] / peak.amount) * beside : least.seconds / ourTime.seconds.median,
        }),
        tensorBytes,
        ...(resets &&
          most !== undefined &&
          residentBefore !== undefined && { residentBytes: Math.max(0, most - residentBefore) }),
        peers: await Promise.all(rows),
      })
    }
    for (const { peer } of able) if (peer.alive) await peer.ask({ do: 'unload' })
  } catch (error) {
    results.push({ ...base, threads: options.threads[0] as number, peers: [], problem: message(error) })
  } finally {
    subject[Symbol.dispose]()
  }
  emptyCache()
  return results
}

// Of the weights that lie in the folder.
let savedKey = ''
// Bytes before the first case of those that share a model.
let residentBefore: number | undefined

const { values, positionals } = (() => {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        dtype: { type: 'string', multiple: true },
        threads: { type: 'string', multiple: true },
        peer: { type: 'string', multiple: true },
        repeats: { type: 'string', default: '5' },
        name: { type: 'string', default: 'latest' },
        json: { type: 'boolean', default: false },
        list: { type: 'boolean', default: false },
      },
    })
  } catch (error) {
    return usage(message(error))
  }
})()
const precisions = (values.dtype ?? ['f32', 'bf16']).map((d) => oneOf<Precision>(d, ['f32', 'bf16'], 'dtype'))
const threadCounts = values.threads?.map((t) => whole(t, 'threads')) ?? [threads()]
const repeats = whole(values.repeats, 'repeats')
const wanted = (values.peer ?? []).map((p) => oneOf(p, peerNames, 'peer'))
if (!/^[\w.-]+$/.test(values.name))
  usage(`--name must be a file name of letters, digits, '.', '-' and '_' but is '${values.name}'`)
// A whole name is that case alone; anything else is looked for in the names.
const known = new Set(cases.map((c) => c.name))
const fits = (name: string, f: string) => (known.has(f) ? name === f : name.includes(f))
const chosen = cases.filter(({ name }) => positionals.length === 0 || positionals.some((f) => fits(name, f)))
if (chosen.length === 0)
  usage(`no case has a name with ${positionals.map((f) => `'${f}'`).join(' or ')}; --list shows all`)

if (values.list) {
  for (const { name, precisions: of } of chosen) console.log(`${name}  ${of.join(' ')}`)
} else {
  const report: Report = {
    machine: machine(),
    versions: {},
    settings: { repeats, precisions, threads: threadCounts },
    peaks: [],
    results: [],
  }
  const folder = mkdtempSync(join(tmpdir(), 'deem-bench-'))
  const peers = await startPeers(wanted, report.versions)
  let failed = false
  const say = (line: string) => {
    if (!values.json) console.log(line)
  }
  try {
    for (const precision of precisions)
      for (const n of threadCounts) {
        setThreads(n)
        const peak = measurePeak(precision)
        emptyCache()
        report.peaks.push({ precision, threads: n, ...peak })
        say(
          `peak ${precision}, ${n} thread${n > 1 ? 's' : ''}: ${(peak.flops / 1e9).toFixed(0)} GFLOP/s (matrix product), ${(peak.bytes / 1e9).toFixed(1)} GB/s (sum of arrays)`,
        )
      }
    say(columns)
    const peak = (precision: Precision, n: number) =>
      report.peaks.find((p) => p.precision === precision && p.threads === n) as Peak
    for (const precision of precisions)
      for (const c of chosen.filter((c) => c.precisions.includes(precision))) {
        for (const [i, { kind, peer }] of peers.entries())
          if (!peer.alive) peers[i] = await start(kind, report.versions)
        const results = await runCase(c, precision, peers, { threads: threadCounts, repeats, folder, peak })
        for (const r of results) {
          failed ||= r.problem !== undefined || r.peers.some((p) => p.wrong)
          for (const line of lines(r)) say(line)
        }
        report.results.push(...results)
      }
  } finally {
    releaseModule()
    for (const { peer } of peers) peer[Symbol.dispose]()
    rmSync(folder, { recursive: true, force: true })
  }
  const text = `${JSON.stringify(report, null, 1)}\n`
  const results = fileURLToPath(new URL('../bench/results/', import.meta.url))
  mkdirSync(results, { recursive: true })
  writeFileSync(join(results, `${values.name}.json`), text)
  if (values.json) process.stdout.write(text)
  else {
    const ratios = report.results.flatMap((r) => r.peers.flatMap((p) => (p.ratio ? [p.ratio.median] : [])))
    say(
      `${report.results.length} results, ${ratios.filter((r) => r < 1).length} of ${ratios.length} ratios under 1; bench/results/${values.name}.json`,
    )
  }
  if (failed) {
    console.error('some results are wrong or missing, see above')
    process.exitCode = 1
  }
}
