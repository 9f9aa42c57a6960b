/** `npm run demo`: a small DEEM from nothing to answers. Everything it makes lies in one folder. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { Command } from 'commander'
import { parseConfig } from '../config.js'
import { DeemError } from '../errors.js'
import { type ReportData, writeReport } from '../report/index.js'
import { packageRoot } from '../root.js'
import { type DemoConfig, demoConfig, quick, readDemoConfig } from './config.js'
import { denoiserKnowledge, evaluate } from './evaluate.js'
import { deemConfig } from './parts.js'
import { clock, Progress } from './progress.js'
import { type Results, reportData, resultsOf } from './report.js'
import { trainBridges } from './stages/bridges.js'
import { assemble, createDeem, trainAlignment, trainQuestions } from './stages/deem.js'
import { trainDenoiser } from './stages/denoiser.js'
import { trainEncoder } from './stages/encoder.js'
import { trainLanguage } from './stages/language.js'
import { trainVae } from './stages/vae.js'
import { makeWorld, type StageResult, type World } from './world.js'

const stageNames = ['vae', 'denoiser', 'language', 'encoder', 'bridges', 'alignment', 'questions', 'evaluation']

interface Flags {
  quick: boolean
  feedback: boolean
  dir?: string
  config: string
  seed?: string
  precision?: string
}

/** A folder belongs to one configuration: stages trained under another would not fit together. */
function claim(dir: string, config: DemoConfig, feedback: boolean): void {
  const path = join(dir, 'run.json')
  const mine = JSON.stringify({ feedback, config }, null, 1)
  if (existsSync(path) && readFileSync(path, 'utf8') !== mine)
    throw new DeemError('ERR_CONFIG', `'${dir}' holds a run with other settings: remove it or choose another --dir`)
  mkdirSync(dir, { recursive: true })
  writeFileSync(path, mine)
}

async function train(w: World): Promise<{ data: ReportData; results: Results }> {
  const { vae, scale, result: vaeResult } = await trainVae(w)
  const { unet, text, result: denoiserResult } = await trainDenoiser(w, vae, scale)
  const deem = await createDeem(w, scale)
  const languageResult = await trainLanguage(w, deem)
  const { encoder, result: encoderResult } = await trainEncoder(w)
  await assemble(w, deem, { vae, unet, text, encoder })
  const stages: StageResult[] = [vaeResult, denoiserResult, languageResult, encoderResult]
  stages.push(await trainBridges(w, deem, text))
  stages.push(await trainAlignment(w, deem), await trainQuestions(w, deem))

  const model = join(w.dir, 'model')
  mkdirSync(model, { recursive: true })
  await deem.save(join(model, 'model.safetensors'), { dtype: 'f32' }) // of a bf16 run: its masters
  writeFileSync(join(model, 'config.json'), JSON.stringify(deemConfig(w.config, w.tokenizer, scale), null, 1))
  await w.tokenizer.save(model)

  const evaluating = performance.now()
  const evaluation = await evaluate(w, deem)
  const knowledge = await denoiserKnowledge(w, { vae, unet, text, scale })
  const parameters = deem.parameters().reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0)
  const seconds = stages.reduce((sum, s) => sum + s.seconds, 0) + (performance.now() - evaluating) / 1000
  for (const m of [vae, unet, text, encoder, deem]) m.dispose()
  return {
    data: reportData({ w, evaluation, stages, knowledge, parameters, seconds }),
    results: resultsOf(evaluation),
  }
}

async function main(flags: Flags): Promise<void> {
  const given = readDemoConfig(flags.config)
  const { seed = given.seed, precision = given.precision } = flags
  const asked = { ...given, seed: Number(seed), ...(precision && { precision }) }
  const checked = parseConfig(demoConfig, asked, 'demo')
  const config = flags.quick ? quick(checked) : checked
  const dir =
    flags.dir ?? join(packageRoot, 'runs', `demo${flags.quick ? '-quick' : ''}${flags.feedback ? '' : '-no-feedback'}`)
  claim(dir, config, flags.feedback)

  const stop = new AbortController()
  process.on('SIGINT', () => {
    if (stop.signal.aborted) process.exit(130)
    stop.abort(new Stopped())
  })
  process.on('SIGTERM', () => stop.abort(new Stopped()))

  const progress = new Progress(stageNames)
  const begin = performance.now()
  const w = await makeWorld(config, { dir, feedback: flags.feedback, progress, signal: stop.signal })
  const { data, results } = await train(w)
  const report = join(dir, 'report.html')
  await writeReport(report, data)
  writeFileSync(join(dir, 'results.json'), JSON.stringify(results, null, 1))
  for (const { label, value, target } of data.headline ?? []) {
    const shown =
      typeof value === 'string'
        ? value
        : `${(100 * value.value).toFixed(1)} % (${(100 * value.low).toFixed(1)} to ${(100 * value.high).toFixed(1)}, ${value.right} of ${value.total})`
    progress.say(`${label}: ${shown}${target === undefined || flags.quick ? '' : `, asked for ${100 * target} %`}`)
  }
  progress.say(`done in ${clock((performance.now() - begin) / 1000)}: ${relative(process.cwd(), report)}`)
}

class Stopped extends Error {
  override name = 'Stopped'
}

const program = new Command('demo')
  .description(
    'Trains a small DEEM on emoji scenes, measures it and writes a report. Stopped with Ctrl-C it goes on at the next start.',
  )
  .option('--quick', 'every stage a few steps long: shows that all runs, not that it learns', false)
  .option('--no-feedback', 'without the consistency loss')
  .option('--dir <folder>', 'where everything is kept (default: runs/demo)')
  .option('--config <file>', 'sizes and stages', join(packageRoot, 'configs/nano.yaml'))
  .option('--seed <n>', 'in place of the seed of the configuration')
  .option('--precision <dtype>', 'f32 or bf16 (with f32 master weights), in place of that of the configuration')

try {
  await main(program.parse().opts<Flags>())
} catch (error) {
  if (error instanceof Stopped) {
    console.error('\nstopped; the next start goes on from here')
    process.exit(130)
  }
  console.error(DeemError.isInstance(error) ? `${error.code}: ${error.message}` : error)
  process.exit(1)
}
