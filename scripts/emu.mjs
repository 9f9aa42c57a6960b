// npm run test:emu [-- plain asan tsan] [-- --only NAME]: the CUDA backend on the emulated GPU. `plain` runs every test under three
// schedules, `asan` under AddressSanitizer and UBSan, `tsan` under ThreadSanitizer as a race detector; all three by default. Needs
// the headers of the CUDA toolkit. Ends with `N passed, N failed`.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const jobs = process.env.DEEM_JOBS ?? '2'
const args = process.argv.slice(2)
const at = args.indexOf('--only')
const only = at < 0 ? [] : args.splice(at, 2).slice(1)

const sets = {
  plain: { preset: 'emu', env: { EMU_SEEDS: '0,1,2' } },
  // Without a second stack for each of the thousands of fibers of a launch, which took nearly all of the time.
  asan: {
    preset: 'emu-asan',
    env: {
      EMU_SEEDS: '1',
      DEEM_CUDA_EXACT_BLOCKS: '1',
      ASAN_OPTIONS: 'allocator_may_return_null=1:detect_stack_use_after_return=0',
    },
  },
  // libgomp is not instrumented: what the CPU's side does on several threads would look like races.
  tsan: { preset: 'emu-tsan', env: { EMU_SEEDS: '1', DEEM_THREADS: '1', OMP_NUM_THREADS: '1' } },
}
const chosen = args.length > 0 ? args : Object.keys(sets)
const total = { passed: 0, failed: 0 }
const seconds = (start) => `${((Date.now() - start) / 1000).toFixed(1)} s`

function build(preset) {
  const start = Date.now()
  for (const step of [
    ['--preset', preset],
    ['--build', '--preset', preset, '--parallel', jobs],
  ]) {
    const { status } = spawnSync('cmake', step, { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] })
    if (status !== 0) return false
  }
  console.log(`${preset}: built in ${seconds(start)}`)
  return true
}

for (const name of chosen) {
  const set = sets[name]
  if (!set) {
    console.error(`no set ${name}; there are ${Object.keys(sets).join(', ')}`)
    process.exit(2)
  }
  if (!build(set.preset)) {
    console.error(`${set.preset}: the build failed`)
    total.failed++
    continue
  }
  const start = Date.now()
  const { status, stdout } = spawnSync(join(root, `build-${set.preset}`, 'deem-cuda-tests'), only, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...set.env },
  })
  const out = stdout ?? ''
  for (const line of out.split('\n')) if (!/^ok /.test(line) && line !== '') console.log(line)
  const [, passed, failed] = /^(\d+) passed, (\d+) failed$/m.exec(out) ?? []
  total.passed += Number(passed ?? 0)
  total.failed += Number(failed ?? 0)
  if (status !== 0 && !Number(failed)) total.failed++ // a sanitizer ended it
  console.log(`${set.preset}: ran in ${seconds(start)}`)
}
console.log(`${total.passed} passed, ${total.failed} failed`)
process.exit(total.failed > 0 || total.passed === 0 ? 1 : 0)
