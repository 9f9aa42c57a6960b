// The system packages a build from source needs. Installs them where this process may, else prints the line to type.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'

const needed = [
  { package: 'g++', present: () => runs('c++') },
  { package: 'cmake', present: () => runs('cmake') },
  { package: 'make', present: () => runs('make') },
  { package: 'libdnnl-dev', present: () => header('oneapi/dnnl/dnnl.hpp') },
  { package: 'nlohmann-json3-dev', present: () => header('nlohmann/json.hpp') },
]

export function requireSystemPackages() {
  const missing = needed.filter((n) => !n.present()).map((n) => n.package)
  if (missing.length === 0) return
  const root = process.getuid?.() === 0
  const line = `${root ? '' : 'sudo '}apt-get update && ${root ? '' : 'sudo '}apt-get install -y ${missing.join(' ')}`
  if (root && runs('apt-get')) {
    console.log(`installing ${missing.join(' ')}`)
    spawnSync('sh', ['-c', `apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy ${missing.join(' ')}`], { stdio: 'inherit' })
    if (needed.every((n) => n.present())) return
  }
  console.error(`deem is built from source here and needs: ${missing.join(', ')}. Type:\n  ${line}`)
  process.exit(1)
}

function runs(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0
}

function header(path) {
  return ['/usr/include', '/usr/local/include'].some((dir) => existsSync(`${dir}/${path}`))
}
