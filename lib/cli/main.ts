#!/usr/bin/env node
/** The command line. Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted. */
import { Command } from 'commander'
import { DeemError } from '../errors.js'
import { cudaSelftest, selftestText } from '../selftest/run.js'
import { addConvertCommand } from './convert.js'
import { diagnose, diagnosisText } from './doctor.js'
import { inspect, inspectedText } from './inspect.js'
import { addModelCommands } from './run.js'

const program = new Command('deem')
  .description('Talks about pictures and paints them, with DEEM models.')
  .showHelpAfterError()
  .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2))

program
  .command('doctor')
  .description('says which device, instructions, threads, libraries and memory are found, and what is used')
  .option('--json', 'print one JSON object')
  .action(({ json }: { json?: boolean }) => {
    const found = diagnose()
    console.log(json ? JSON.stringify(found, null, 1) : diagnosisText(found))
  })

program
  .command('inspect')
  .description('prints what a file of weights holds: safetensors, or an archive of torch.save')
  .argument('<file>')
  .option('--json', 'print one JSON object')
  .action(async (file: string, { json }: { json?: boolean }) => {
    const found = await inspect(file)
    console.log(json ? JSON.stringify(found, null, 1) : inspectedText(found))
  })

program
  .command('cuda-selftest')
  .description('runs every operation and training steps on a GPU beside the CPU, and says how fast each was')
  .option('--scale <n>', 'divides sizes, for GPUs that are emulated', (n) => Number(n), 1)
  .option('--json', 'print one JSON object')
  .action(async ({ json, scale }: { json?: boolean; scale: number }) => {
    const report = await cudaSelftest({
      scale,
      ...(!json && { onRow: (row, device) => console.log(selftestText(row, device)) }),
    })
    const failed = report.rows.filter((r) => !r.ok).length
    const { name, capability } = report.device
    if (json) console.log(JSON.stringify(report, null, 1))
    else
      console.log(`${name}, compute capability ${capability}: ${report.rows.length - failed} passed, ${failed} failed`)
    if (failed > 0) process.exitCode = 1
  })

addConvertCommand(program)
addModelCommands(program)

try {
  await program.parseAsync()
} catch (error) {
  console.error(DeemError.isInstance(error) ? `${error.code}: ${error.message}` : error)
  process.exitCode = 1
}
