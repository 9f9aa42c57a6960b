// npm run build:cuda [-- --arch 80] [-- -DNAME=VALUE]: builds libdeem_cuda.so with nvcc and puts it beside the addon, in build/Release.
// Prints what ptxas says of every kernel and fails where one spills registers, where the wrappers of PTX make other instructions than
// they should, and where the library would need one of CUDA's. Without nvcc it says so and fails.
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const out = join(root, 'build-cuda')
const nvcc = process.env.CUDACXX ?? 'nvcc'
const jobs = process.env.DEEM_JOBS ?? '2'
const problems = []

// Machine code for these, and PTX of the last, which newer GPUs compile for themselves.
const release = '80-real;86-real;89-real;90-real;100-real;120'

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28, ...options })
}

function must(command, args) {
  const { status, error } = run(command, args, { stdio: 'inherit' })
  if (status === 0) return
  console.error(`${command} ${args.join(' ')} failed${error ? `: ${error.message}` : ''}`)
  process.exit(status ?? 1)
}

function build(arch, settings) {
  const archs = arch === undefined ? release : `${arch}-real`
  const generator = run('ninja', ['--version']).status === 0 ? ['-G', 'Ninja'] : []
  must('cmake', ['-S', root, '-B', out, ...generator, '-DDEEM_CUDA=ON', `-DDEEM_CUDA_ARCHS=${archs}`, ...settings])
  must('cmake', ['--build', out, '--parallel', jobs, '--target', 'deem_cuda'])
  return archs
}

/** What ptxas said of the kernels: rows of {name, arch, registers, smem, stack, spilled}, the last three in bytes. */
function kernels() {
  const rows = []
  const folder = join(out, 'cuda/CMakeFiles/deem_cuda.dir')
  for (const entry of readdirSync(folder, { recursive: true })) {
    if (!entry.endsWith('.ptxas')) continue
    let name = ''
    let arch = ''
    let stack = 0
    let spilled = 0
    for (const line of readFileSync(join(folder, entry), 'utf8').split('\n')) {
      const compiling = /Compiling entry function '(\S+)' for '(sm_\w+)'/.exec(line)
      if (compiling) [, name, arch] = compiling
      const frame = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
      if (frame) [stack, spilled] = [Number(frame[1]), Number(frame[2]) + Number(frame[3])]
      const used = /Used (\d+) registers/.exec(line)
      if (used)
        rows.push({
          name,
          arch,
          registers: Number(used[1]),
          smem: Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0),
          stack,
          spilled,
        })
    }
  }
  return rows
}

function demangled(names) {
  const { stdout, status } = run('c++filt', [], { input: names.join('\n') })
  if (status !== 0) return names
  return stdout.split('\n').map((n) =>
    n
      .replace(/^void /, '')
      .replaceAll('deem::cuda::', '')
      .replaceAll('(anonymous namespace)::', '')
      .replace(/\(.*/s, ''),
  )
}

function report(rows) {
  const archs = [...new Set(rows.map((r) => r.arch))].sort((a, b) => Number(a.slice(3)) - Number(b.slice(3)))
  const byName = new Map()
  for (const r of rows) byName.set(r.name, [...(byName.get(r.name) ?? []), r])
  const names = [...byName.keys()]
  const short = demangled(names)
  // For npm run bench:roofline.
  const plain = rows.map(({ name, arch, registers, smem }) => ({
    name: short[names.indexOf(name)],
    arch,
    registers,
    smem,
  }))
  writeFileSync(join(out, 'kernels.json'), JSON.stringify(plain))
  console.log(`registers ${archs.join(' ').padEnd(6 * archs.length)}  static shared bytes  kernel`)
  for (const i of names.map((_, i) => i).sort((a, b) => (short[a] < short[b] ? -1 : 1))) {
    const of = byName.get(names[i])
    const cells = archs.map((a) => String(of.find((r) => r.arch === a)?.registers ?? '-').padStart(5)).join(' ')
    const stack = Math.max(...of.map((r) => r.stack))
    const local = stack > 0 ? `  (${stack} bytes in local memory)` : ''
    console.log(`         ${cells}  ${String(Math.max(...of.map((r) => r.smem))).padStart(19)}  ${short[i]}${local}`)
    for (const r of of) if (r.spilled > 0) problems.push(`${short[i]} spills ${r.spilled} bytes on ${r.arch}`)
  }
  console.log(`${names.length} kernels for ${archs.length} architectures, ${problems.length} of them spill`)
}

/** Instructions in the PTX of test/cuda/ptx_probe.cu, and how often each must be there. */
const wrappers = {
  'mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32': 1,
  'mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32': 1,
  'ldmatrix.sync.aligned.m8n8.x4.shared.b16': 1,
  'ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16': 1,
  'cp.async.cg.shared.global': 1,
  'cp.async.ca.shared.global': 2,
  'cp.async.commit_group': 1,
  'cp.async.wait_group': 2,
  'ex2.approx.ftz.f32': 1,
}

function checkWrappers() {
  const ptx = join(out, 'ptx_probe.ptx')
  must(nvcc, ['-std=c++20', '-I.', '-Icsrc', '-arch=compute_80', '-ptx', 'test/cuda/ptx_probe.cu', '-o', ptx])
  const text = readFileSync(ptx, 'utf8')
  for (const [instruction, times] of Object.entries(wrappers)) {
    const found = text.split('\n').filter((l) => l.trim().split(/[\s;]/)[0] === instruction).length
    if (found !== times) problems.push(`the probe has ${instruction} ${found} times, not ${times}`)
  }
  // A wrapper that the probe lacks would go unseen.
  const asm = readFileSync(join(root, 'cuda/ptx.cuh'), 'utf8').match(/\basm\b/g).length
  const uses = Object.keys(wrappers).length + 1 // cp.async.ca is in two
  if (asm - 1 !== uses) problems.push(`cuda/ptx.cuh has ${asm - 1} wrappers, test/cuda/ptx_probe.cu knows ${uses}`)
  console.log(`ptx: ${Object.keys(wrappers).length} instructions counted`)
}

function checkLibrary(library, archs) {
  const needed =
    run('objdump', ['-p', library])
      .stdout.match(/NEEDED\s+\S+/g)
      ?.map((l) => l.split(/\s+/)[1]) ?? []
  for (const n of needed) if (/cuda|cublas|nvrtc|cudnn|nccl/.test(n)) problems.push(`libdeem_cuda.so needs ${n}`)
  const exported =
    run('nm', ['-D', '--defined-only', library])
      .stdout.match(/ T \w+/g)
      ?.map((l) => l.slice(3)) ?? []
  if (exported.join() !== 'deem_cuda_plugin') problems.push(`libdeem_cuda.so exports ${exported.join(', ')}`)
  const release = join(root, 'build/Release')
  mkdirSync(release, { recursive: true })
  // Renamed into place: a process that runs the old one keeps it.
  copyFileSync(library, join(release, 'libdeem_cuda.so.new'))
  renameSync(join(release, 'libdeem_cuda.so.new'), join(release, 'libdeem_cuda.so'))
  console.log(
    `libdeem_cuda.so: ${(statSync(library).size / 1e6).toFixed(2)} MB for ${archs}; needs ${needed.join(', ')}`,
  )
}

if (run(nvcc, ['--version']).status !== 0) {
  console.error(
    `build:cuda needs NVIDIA's compiler, and '${nvcc}' is not there: install the CUDA toolkit (12.8 or newer; no driver and no GPU is needed to build), or say in CUDACXX where nvcc is`,
  )
  process.exit(1)
}
const args = process.argv.slice(2)
const at = args.indexOf('--arch')
const arch = at < 0 ? undefined : args.splice(at, 2)[1]
const archs = build(arch, args)
report(kernels())
checkWrappers()
checkLibrary(join(out, 'libdeem_cuda.so'), archs)
for (const p of problems) console.error(p)
if (problems.length > 0) process.exit(1)
