import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/**
 * The nearest folder above with a `package.json`, which is the package's own: how deep below it this code lies is the build's choice
 * (scripts/ts.mjs). In an application that bundles all its packages it is the application's.
 */
export const packageRoot = ((): string => {
  const here = dirname(fileURLToPath(import.meta.url))
  for (let folder = here; ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder
    if (folder === dirname(folder)) return dirname(here)
  }
})()
