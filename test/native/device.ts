// What is said where the CUDA backend cannot run. Each case is a process of its own, since a backend is looked for once.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { defaultDevice, devices, memory, ops, synchronize, tensor } from 'deem'

const root = fileURLToPath(new URL('../..', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'deem-device-'))
test.after.always(() => rmSync(folder, { recursive: true }))

/** Runs code with the package as `deem`, and gives the JSON it prints. */
function run(code: string, env: Record<string, string>): unknown {
  const script = `const deem = await import('${join(root, 'dist/index.js')}')\n${code}`
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...env },
  })
  if (status !== 0) throw new Error(`ended with ${status}: ${stderr}`)
  return JSON.parse(stdout)
}

const asks = `
  const errors = []
  for (const ask of [
    () => deem.tensor([1], undefined, 'f32', { device: 'cuda' }),
    () => deem.loadModel('deem-nano', { device: 'cuda' }),
    () => deem.Module.create('vae', {}, { device: 'cuda:1' }),
    () => deem.memory({ device: 'cuda' }),
    () => deem.setDefaultDevice('cuda'),
  ])
    try {
      await ask()
      errors.push('nothing')
    } catch (error) {
      errors.push(error.code + ' ' + error.message)
    }
  const auto = deem.tensor([1, 2], undefined, 'f32', { device: 'auto' })
  const [cpu, cuda] = deem.devices()
  console.log(JSON.stringify({ errors, auto: auto.device, sum: deem.ops.sum(auto, [0], false).item(), cpu, cuda }))
`

interface Said {
  errors: string[]
  auto: string
  sum: number
  cpu: { usable: boolean }
  cuda: { device: string; usable: boolean; why: string }
}

/** A library in the place of the backend. `fields` are those of Plugin in csrc/core/plugin.h. */
function library(name: string, fields: string | undefined): string {
  const source = join(folder, `${name}.c`)
  const body =
    fields === undefined
      ? 'int other(void) { return 0; }'
      : `struct plugin { unsigned abi; const char* version; _Bool needs_driver; const void* kernels; unsigned long count; const void* api; };
         const struct plugin* deem_cuda_plugin(void) { static const struct plugin p = {${fields}}; return &p; }`
  writeFileSync(source, body)
  const path = join(folder, `${name}.so`)
  const { status, stderr } = spawnSync('cc', ['-shared', '-fPIC', '-o', path, source], { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return path
}

const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
const abi = Number(/kPluginAbi = (\d+)/.exec(readFileSync(join(root, 'csrc/core/plugin.h'), 'utf8'))?.[1])

const cases: [name: string, plugin: () => string, why: RegExp, skip?: boolean][] = [
  [
    'no file',
    () => join(folder, 'absent.so'),
    /there is no CUDA backend at '.*absent\.so', which DEEM_CUDA_PLUGIN names/,
  ],
  ['no library', () => join(root, 'package.json'), /cannot be loaded: .*package\.json/],
  [
    'another library',
    () => library('other', undefined),
    /'.*other\.so' is no CUDA backend: it lacks the function deem_cuda_plugin/,
  ],
  [
    'another interface',
    () => library('abi', `${abi + 1}, "${version}"`),
    new RegExp(`speaks interface ${abi + 1} but this engine speaks ${abi};`),
  ],
  [
    'another version',
    () => library('version', `${abi}, "0.0.1"`),
    new RegExp(`is of version 0\\.0\\.1 but the engine is ${version};`),
  ],
  [
    'no driver',
    () => library('driver', `${abi}, "${version}", 1`),
    /there is no NVIDIA driver \(libcuda\.so\.1: .*\); install one/,
    existsSync('/proc/driver/nvidia'),
  ],
]
for (const [name, plugin, why, skip] of cases)
  (skip ? test.skip : test)(`${name}: cuda says so, auto is the cpu`, (t) => {
    const said = run(asks, { DEEM_CUDA_PLUGIN: plugin() }) as Said
    for (const error of said.errors) {
      t.regex(error, /^ERR_DEVICE device 'cuda' is not available: /)
      t.regex(error, why)
    }
    t.is(said.errors.length, 5)
    t.is(said.auto, 'cpu')
    t.is(said.sum, 3)
    t.true(said.cpu.usable)
    t.like(said.cuda, { device: 'cuda', usable: false })
    t.regex(said.cuda.why, why)
  })

test('DEEM_DEVICE names what nobody else says; a wrong one is told at the first use, not at the import', (t) => {
  const code = `
    let error = ''
    try { deem.tensor([1]) } catch (e) { error = e.message }
    console.log(JSON.stringify({ error, ids: deem.tensor([1], undefined, 'i64').device }))`
  t.like(run(code, { DEEM_DEVICE: 'tpu' }), {
    error: "unknown device 'tpu', known are cpu, cuda, cuda:0 and so on, and auto",
    ids: 'cpu',
  })
})

test('the cpu is a device like others', async (t) => {
  t.is(defaultDevice(), 'cpu')
  const [cpu] = devices()
  t.like(cpu, { device: 'cpu', usable: true, why: '', capability: '' })
  t.true((cpu?.totalBytes ?? 0) > 2 ** 28)
  using x = tensor([1, 2, 3])
  using y = x.to('cpu')
  t.is(y.device, 'cpu')
  t.deepEqual([...y.toFloat32()], [1, 2, 3])
  t.deepEqual([...ops.full([2], 3, 'f32', 'cpu').toFloat32()], [3, 3])
  t.is(memory({ device: 'cpu' }).current, memory().current)
  await synchronize()
  for (const bad of ['gpu', 'cuda:', 'cuda:x', 'cuda:-1', 'cuda:1x', ''])
    t.throws(() => x.to(bad as 'cpu'), { code: 'ERR_DEVICE', message: /^unknown device/ }, bad)
})
