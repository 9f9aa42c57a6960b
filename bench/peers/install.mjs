// npm run bench:peers: installs what the bench compares with, beside the bench and nowhere else: llama.cpp and onnxruntime from npm,
// PyTorch and what writes their files into a Python environment of their own. Exits 1 and says so where something cannot be had.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const folder = fileURLToPath(new URL('.', import.meta.url))
const python = `${folder}.venv/bin/python`
let failed = false

function run(what, command, args, env = {}) {
  console.log(`== ${what}`)
  const { status } = spawnSync(command, args, { cwd: folder, stdio: 'inherit', env: { ...process.env, ...env } })
  if (status === 0) return true
  console.error(`${what}: failed`)
  failed = true
  return false
}

// Their own packages for other GPUs and systems, 600 MB of them, are optional.
run('llama.cpp and onnxruntime', 'npm', ['install', '--omit=optional', '--no-audit', '--no-fund'], {
  ONNXRUNTIME_NODE_INSTALL: 'skip',
  ONNXRUNTIME_NODE_INSTALL_CUDA: 'skip',
})
// What is installed already, a PyTorch for instance, is used. One by one: pip installs nothing where one of several is missing.
if (existsSync(python) || run('Python environment', 'python3', ['-m', 'venv', '--system-site-packages', '.venv'])) {
  const install = (what, ...packages) => run(what, python, ['-m', 'pip', 'install', '-q', ...packages])
  install('PyTorch', 'torch==2.13.0', 'numpy')
  install('what writes a GGUF file for llama.cpp', 'gguf')
  install('what writes a model for onnxruntime', 'onnx')
}
process.exit(failed ? 1 : 0)
