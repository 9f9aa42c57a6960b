// The only caller of CMake: configures and builds through cmake-js in build-cmake/, then copies the addon to
// build/Release, where node-gyp-build looks first. (node-gyp wipes build/, so CMake's cache must not live there.)
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { requireSystemPackages } from './system.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
requireSystemPackages()

const cmakeJs = join(dirname(createRequire(import.meta.url).resolve('cmake-js/package.json')), 'bin/cmake-js')
const env = { ...process.env }
for (const name of ['MAKEFLAGS', 'MFLAGS', 'MAKELEVEL', 'BUILDTYPE', 'V']) delete env[name] // may run inside gyp's make
const out = join(root, 'build-cmake')
// cmake-js takes a cache for a configured build: after a configuration that failed it would build nothing for ever.
if (!existsSync(join(out, 'build.ninja')) && !existsSync(join(out, 'Makefile')))
  rmSync(join(out, 'CMakeCache.txt'), { force: true })
const result = spawnSync(
  process.execPath,
  [
    cmakeJs,
    'build',
    '--log-level',
    'warn',
    '-d',
    root,
    '-O',
    out,
    '--parallel',
    process.env.DEEM_JOBS ?? '2',
    ...process.argv.slice(2),
  ],
  { stdio: 'inherit', env },
)
if (result.status !== 0) process.exit(result.status ?? 1)

const release = join(root, 'build/Release')
mkdirSync(release, { recursive: true })
for (const folder of [join(out, 'Release'), out])
  if (existsSync(folder))
    for (const file of readdirSync(folder))
      if (/\.(node|so(\.\d+)?)$/.test(file)) {
        // Renamed into place: a process that runs the old one keeps it.
        copyFileSync(join(folder, file), join(release, `${file}.new`))
        renameSync(join(release, `${file}.new`), join(release, file))
      }
