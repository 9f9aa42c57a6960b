// npm run docs: the API pages, in docs-build/api. typedoc and the TypeScript it reads with are installed on the first run.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = join(root, 'docs/api')
const typedoc = join(folder, 'node_modules/typedoc/bin/typedoc')

function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { cwd: folder, stdio: 'inherit' })
  if (error) throw error
  if (status !== 0) process.exit(status ?? 1)
}

if (!existsSync(typedoc)) run('npm', 'ci', '--no-fund', '--no-audit')
run(process.execPath, typedoc)
