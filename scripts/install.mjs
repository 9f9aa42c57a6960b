// Runs after `npm install`: uses a prebuilt addon if one loads here, else builds from source.
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const fromSource = process.env.npm_config_build_from_source === 'true'

function loads() {
  try {
    createRequire(import.meta.url)('node-gyp-build')(root)
    return true
  } catch {
    return false // no binary, or one for another libc: build it
  }
}

if (fromSource || !loads()) await import('./native.mjs')
