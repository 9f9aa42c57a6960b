// npm run test:emu [-- plain asan tsan public] [--only NAME] [-DNAME=VALUE]: the CUDA backend on the emulated GPU. `plain` runs every
// native test under three schedules, `asan` under AddressSanitizer and UBSan, `tsan` under ThreadSanitizer as a race detector; these three
// by default. `public` takes the way of users: parity of every stored case and the tests of operations with cuda as the device, under the
// same schedules, and the tests of models under one; most of an hour on two cores. Needs the headers of the CUDA toolkit;
// -DDEEM_CUDA_WHEELS=DIR (see CMakeLists.txt) brings cuBLASLt's. Ends with `N passed, N failed`.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
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
const settings = args.filter((a) => a.startsWith('-D'))
const named = args.filter((a) => !a.startsWith('-D'))
const chosen = named.length > 0 ? named : Object.keys(sets)
const total = { passed: 0, failed: 0 }
const seconds = (start) => `${((Date.now() - start) / 1000).toFixed(1)} s`

function build(preset) {
  const start = Date.now()
  for (const step of [
    ['--preset', preset, ...settings],
    ['--build', '--preset', preset, '--parallel', jobs],
  ]) {
    const { status } = spawnSync('cmake', step, { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] })
    if (status !== 0) return false
  }
  console.log(`${preset}: built in ${seconds(start)}`)
  return true
}

/** A command with cuda as the device, its counts taken from a line of its output. */
function counted(title, args, env, line) {
  const start = Date.now()
  const { status, stdout } = spawnSync(process.execPath, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, DEEM_CUDA_PLUGIN: join(root, 'build-emu/libdeem_cudaemu.so'), ...env },
  })
  const out = stdout ?? ''
  const [, passed = '0', failed = '0'] = line.exec(out) ?? []
  total.passed += Number(passed)
  total.failed += Number(failed)
  if (Number(failed) > 0 || status !== 0 || passed === '0') {
    console.log(out)
    if (failed === '0') total.failed++ // it ended before it could count
  }
  console.log(`${title}: ${passed} passed, ${failed} failed in ${seconds(start)}`)
}

function publicTests() {
  // The tests' own script builds what is written in TypeScript, which parity uses.
  const parity = [join(root, 'dist/parity/cli.js'), 'test/fixtures', '--device', 'cuda']
  const test = (folder) => [
    join(root, 'scripts/test.mjs'),
    ...readdirSync(join(root, 'test', folder))
      .filter((f) => f.endsWith('.ts'))
      .map((f) => join('test', folder, f)),
  ]
  for (const seed of ['0', '1', '2']) {
    counted(
      `operations, schedule ${seed}`,
      test('ops'),
      { EMU_SEED: seed, DEEM_DEVICE: 'cuda' },
      /^(\d+) passed, (\d+) failed$/m,
    )
    counted(`parity, schedule ${seed}`, parity, { EMU_SEED: seed }, /^(\d+) ok, (\d+) failed$/m)
  }
  counted('models', test('models'), { DEEM_DEVICE: 'cuda' }, /^(\d+) passed, (\d+) failed$/m)
}

for (const name of chosen) {
  if (name === 'public') {
    if (only.length > 0) {
      console.error('--only names a native test, and public runs none')
      process.exit(2)
    }
    if (build('emu')) publicTests()
    else total.failed++
    continue
  }
  const set = sets[name]
  if (!set) {
    console.error(`no set ${name}; there are ${Object.keys(sets).join(', ')}, public`)
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
