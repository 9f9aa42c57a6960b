// npm run demo: builds what is not built yet, then trains, measures and reports. Flags: see lib/demo/main.ts.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

function run(script, ...args) {
  const { status, error } = spawnSync(process.execPath, [join(root, script), ...args], { cwd: root, stdio: 'inherit' })
  if (error) throw error
  if (status !== 0) process.exit(status ?? 1)
}

run('scripts/native.mjs')
run('scripts/ts.mjs')

// In this process, so that Ctrl-C reaches the training once.
await import('../dist/demo/main.js')
