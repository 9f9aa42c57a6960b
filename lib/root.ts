import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/**
 * The package's own folder, found by its `package.json`: how deep below it this code lies is the build's choice (scripts/ts.mjs). Where an
 * application is bundled without that file, the folder above this one.
 */
export const packageRoot = ((): string => {
  const here = dirname(fileURLToPath(import.meta.url))
  for (let folder = here; ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder
    if (folder === dirname(folder)) return dirname(here)
  }
})()
