// npm run prebuildify: builds the addon into prebuilds/ with the libraries it needs beside it, and checks that it loads
// from there alone. `--bundle` is the step that prebuildify calls between building and copying; it makes the CUDA backend too, where nvcc
// is found, unless `--no-cuda` is said.
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const release = join(root, 'build/Release')

function run(command, args, options = {}) {
  const { status, stdout, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    ...options,
  })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed${error ? `: ${error.message}` : ''}`)
  return stdout
}

/** Copies libdnnl and libgomp, which minimal systems lack, to the addon's side; it looks there first. */
function bundle() {
  const libraries = [
    ...run('ldd', [join(release, 'deem.node')]).matchAll(/^\s*(lib(?:dnnl|gomp)\.so\.\d+) => (\/\S+)/gm),
  ]
  for (const [, name, path] of libraries) {
    copyFileSync(path, join(release, name))
    if (name.startsWith('libdnnl')) standInForOpenCL(path)
  }
  if (process.argv.includes('--no-cuda')) return
  if (spawnSync(process.env.CUDACXX ?? 'nvcc', ['--version'], { stdio: 'ignore' }).status === 0)
    run(process.execPath, [join(root, 'scripts/cuda.mjs')], { stdio: 'inherit' })
  else console.log('no nvcc: the package is made without the CUDA backend')
}

/**
 * Debian builds oneDNN with its GPU runtime, so it asks for libOpenCL, which we never use. A stand-in with the same
 * symbols, all of which say that there is no platform, spares users the package.
 */
function standInForOpenCL(dnnl) {
  const symbols = [...run('objdump', ['-T', dnnl]).matchAll(/\(?(OPENCL_\d+\.\d+)\)?\s+(cl\w+)$/gm)]
  if (symbols.length === 0) return
  const work = mkdtempSync(join(tmpdir(), 'deem-opencl-'))
  const makesObject = /^cl(Create|EnqueueMap|GetExtension)/
  const CL_PLATFORM_NOT_FOUND_KHR = -1001
  const body = symbols.map(
    ([, , s]) => `long ${s}(void) { return ${makesObject.test(s) ? 0 : CL_PLATFORM_NOT_FOUND_KHR}; }`,
  )
  const versions = [...new Set(symbols.map(([, v]) => v))].sort()
  const script = versions.map(
    (v) =>
      `${v} { ${symbols
        .filter(([, w]) => w === v)
        .map(([, , s]) => `${s};`)
        .join(' ')} };`,
  )
  writeFileSync(join(work, 'stub.c'), body.join('\n'))
  writeFileSync(join(work, 'stub.map'), script.join('\n'))
  const flags = ['-shared', '-fPIC', '-O1', '-nostdlib', '-Wl,-soname,libOpenCL.so.1', '-Wl,--version-script=stub.map']
  run('cc', [...flags, '-o', join(release, 'libOpenCL.so.1'), 'stub.c'], { cwd: work })
  rmSync(work, { recursive: true })
}

/** Loads the addon in this process and makes sure that every library it brought along came from prebuilds/. */
function verify() {
  const addon = createRequire(import.meta.url)('node-gyp-build')(root)
  const mapped = new Set(
    readFileSync('/proc/self/maps', 'utf8').match(/\/\S*(?:deem\S*\.node|lib(?:dnnl|gomp|OpenCL)\.so\S*)/g),
  )
  for (const path of mapped)
    if (!path.startsWith(join(root, 'prebuilds/'))) throw new Error(`loaded ${path} from outside prebuilds/`)
  console.log(`loads from prebuilds/ (${addon.isa()}): ${[...mapped].map((p) => p.slice(root.length)).join(', ')}`)
}

if (process.argv.includes('--bundle')) bundle()
else if (process.argv.includes('--verify')) verify()
else {
  for (const folder of ['prebuilds', 'build/Release']) rmSync(join(root, folder), { recursive: true, force: true })
  const prebuildify = join(root, 'node_modules/prebuildify/bin.js')
  const how = ['--napi', '--strip', '--tag-libc', '--node-gyp', './scripts/cmake-gyp']
  const bundling = ['node scripts/prebuild.mjs --bundle', ...process.argv.filter((a) => a === '--no-cuda')].join(' ')
  run(process.execPath, [prebuildify, ...how, '--postinstall', bundling], {
    stdio: 'inherit',
  })
  rmSync(release, { recursive: true, force: true }) // what is left there would be found before prebuilds/
  run(process.execPath, [fileURLToPath(import.meta.url), '--verify'], { stdio: 'inherit' })
}
