// Format and lint of both languages, and the rules of the source tree that no tool knows. `--fix` formats.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { formatPackages, haveSystemPackages } from './system.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const fix = process.argv.includes('--fix')
const problems = []

function sources(folder, extensions) {
  const path = join(root, folder)
  if (!existsSync(path)) return []
  return readdirSync(path, { recursive: true, withFileTypes: true })
    .filter((e) => e.isFile() && !e.parentPath.includes('node_modules') && extensions.some((x) => e.name.endsWith(x)))
    .map((e) => join(e.parentPath, e.name).slice(root.length))
    .sort()
}

const cpp = ['csrc', 'cuda', 'test/cpp', 'test/cuda', 'test/emu'].flatMap((f) =>
  sources(f, ['.h', '.cpp', '.cu', '.cuh']),
)
const ts = ['lib', 'test', 'bench', 'examples', 'scripts'].flatMap((f) => sources(f, ['.ts', '.mjs']))

function formatCpp() {
  if (!haveSystemPackages(formatPackages, 'the lint of C++')) return problems.push('clang-format-14 is missing')
  const how = fix ? ['-i'] : ['--dry-run', '-Werror']
  const { status } = spawnSync('clang-format-14', [...how, ...cpp], { cwd: root, stdio: 'inherit' })
  if (status !== 0) problems.push('C++ is not formatted: npm run lint -- --fix')
}

function checkTypeScript() {
  const biome = join(root, 'node_modules/@biomejs/biome/bin/biome')
  const how = ['check', '--error-on-warnings', '--max-diagnostics=100', ...(fix ? ['--write'] : [])]
  const { status } = spawnSync(process.execPath, [biome, ...how], { cwd: root, stdio: 'inherit' })
  if (status !== 0) problems.push('biome found problems; npm run lint -- --fix mends what it can')
}

/** Reports every line of the files that matches, unless `allowed` says the line is fine. */
function forbid(files, pattern, message, allowed = () => false) {
  for (const file of files)
    for (const [i, line] of readFileSync(join(root, file), 'utf8').split('\n').entries())
      if (pattern.test(line) && !allowed(line)) problems.push(`${file}:${i + 1}: ${message}`)
}

function checkTree() {
  for (const file of [...cpp, ...ts]) {
    const lines = readFileSync(join(root, file), 'utf8').split('\n').length - 1
    if (lines > 800) problems.push(`${file}: ${lines} lines, at most 800`)
  }
  // A shared inline function emitted in an AVX-512 object may be the one the linker keeps for every machine (csrc/cpu/simd.h).
  const mathOnly = (line) =>
    !line.replace(/std::(sqrt|fabs|floor|ceil|fma|bit_cast|memory_order\w*|size_t)\b/g, '').includes('std::')
  forbid(
    cpp.filter((f) => f.startsWith('csrc/cpu/kernels/')),
    /^(?!\s*\/\/).*std::/,
    'kernels use no std:: containers or algorithms',
    mathOnly,
  )
  forbid(
    cpp.filter((f) => !f.startsWith('csrc/node/')),
    /#\s*include\s*[<"](napi|node_api|js_native_api)/,
    'only csrc/node includes the Node API',
  )
  forbid(
    cpp.filter((f) => f.startsWith('csrc/')),
    /\b(abort|exit|_exit|quick_exit|assert)\s*\(/,
    'no abort, exit or assert: throw a typed error',
    (line) => /^\s*(\/\/|\*)|static_assert\s*\(|\.abort\(|"abort"/.test(line),
  )
  // The emulator has no other way to see launches, shared memory and instructions (cuda/device.cuh, cuda/ptx.cuh).
  const device = cpp.filter((f) => /^(cuda|test\/cuda|test\/emu)\//.test(f) && !f.startsWith('cuda/emu/'))
  const comment = (line) => /^\s*\/\//.test(line)
  forbid(device, /<<<|>>>\(/, 'kernels are launched by DEEM_LAUNCH', comment)
  forbid(
    device.filter((f) => f !== 'cuda/device.cuh'),
    /__shared__/,
    'shared memory is DEEM_SHARED or DEEM_SHARED_DYN',
    comment,
  )
  forbid(
    device.filter((f) => f !== 'cuda/ptx.cuh'),
    /\basm\b/,
    'only cuda/ptx.cuh holds asm',
    comment,
  )
  forbid(
    ts.filter((f) => f !== 'lib/native.ts' && !f.startsWith('scripts/') && !f.endsWith('.d.ts')),
    /node-gyp-build|\.node['"`]/,
    'only lib/native.ts loads the addon',
  )
}

formatCpp()
checkTypeScript()
checkTree()
for (const p of problems) console.error(p)
if (problems.length > 0) process.exit(1)
console.log(`lint: ${cpp.length} C++ and ${ts.length} TypeScript and JavaScript files are fine`)
