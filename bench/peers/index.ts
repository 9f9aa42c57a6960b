/** How each peer is started, and what to do where it is not installed. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import type { Case, PeerName, Precision } from '../case.js'

const source = fileURLToPath(new URL('../../bench/peers/', import.meta.url))
const built = fileURLToPath(new URL('./', import.meta.url))

/** A virtual environment of its own, where there is one, else what the user has. */
export function python(): string {
  const own = `${source}.venv/bin/python`
  return existsSync(own) ? own : 'python3'
}

/** Resolves packages of bench/peers, which are no dependencies of ours. */
export const peerRequire = createRequire(`${source}package.json`)

const hasPython = (...modules: string[]) =>
  spawnSync(python(), ['-c', `import ${modules.join(', ')}`], { stdio: 'ignore' }).status === 0
function hasPackage(name: string): boolean {
  try {
    peerRequire.resolve(name)
    return true
  } catch {
    return false
  }
}

export interface PeerKind {
  name: PeerName
  installed(): boolean
  command(): { command: string; args: string[] }
  /** Whether the case is one for it at all. */
  takes(c: Case, precision: Precision): boolean
}

const listed = (c: Case, name: PeerName) =>
  c.peers ? c.peers.includes(name) : name !== 'llama.cpp' && !(name === 'onnxruntime' && c.pass === 'backward')

export const peerKinds: readonly PeerKind[] = [
  {
    name: 'torch',
    installed: () => hasPython('torch'),
    command: () => ({ command: python(), args: ['-u', `${source}torch/main.py`] }),
    takes: (c) => listed(c, 'torch'),
  },
  {
    name: 'torch-compile',
    installed: () => hasPython('torch'),
    command: () => ({ command: python(), args: ['-u', `${source}torch/main.py`, '--compile'] }),
    takes: (c) => listed(c, 'torch-compile'),
  },
  {
    name: 'onnxruntime',
    installed: () => hasPackage('onnxruntime-node') && hasPython('torch', 'onnx'),
    command: () => ({ command: process.execPath, args: [`${built}onnxruntime.js`] }),
    takes: (c, precision) => listed(c, 'onnxruntime') && precision === 'f32' && !c.random,
  },
  {
    name: 'llama.cpp',
    installed: () => hasPackage('node-llama-cpp') && hasPython('gguf'),
    command: () => ({ command: process.execPath, args: [`${built}llama-cpp.js`] }),
    takes: (c) => listed(c, 'llama.cpp'),
  },
]
