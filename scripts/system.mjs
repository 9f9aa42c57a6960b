// System packages that the build and the checks need. Installs them where this process may, else prints the line to type.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'

/** What a build from source needs. */
export const buildPackages = [
  { package: 'g++', present: () => runs('c++') },
  { package: 'cmake', present: () => runs('cmake') },
  { package: 'make', present: () => runs('make') },
  { package: 'libdnnl-dev', present: () => header('oneapi/dnnl/dnnl.hpp') },
  { package: 'nlohmann-json3-dev', present: () => header('nlohmann/json.hpp') },
]

/** The formatter's output depends on its version, so the version is part of its name. */
export const formatPackages = [{ package: 'clang-format-14', present: () => runs('clang-format-14') }]

/** True when all are there, if need be after installing them. */
export function haveSystemPackages(needed, purpose) {
  const missing = needed.filter((n) => !n.present()).map((n) => n.package)
  if (missing.length === 0) return true
  const root = process.getuid?.() === 0
  const sudo = root ? '' : 'sudo '
  if (root && runs('apt-get')) {
    console.log(`installing ${missing.join(' ')}`)
    const install = `apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends ${missing.join(' ')}`
    spawnSync('sh', ['-c', install], { stdio: 'inherit' })
    if (needed.every((n) => n.present())) return true
  }
  console.error(
    `${purpose} needs: ${missing.join(', ')}. Type:\n  ${sudo}apt-get update && ${sudo}apt-get install -y ${missing.join(' ')}`,
  )
  return false
}

export function requireSystemPackages() {
  if (!haveSystemPackages(buildPackages, 'deem is built from source here and')) process.exit(1)
}

function runs(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0
}

function header(path) {
  return ['/usr/include', '/usr/local/include'].some((dir) => existsSync(`${dir}/${path}`))
}
