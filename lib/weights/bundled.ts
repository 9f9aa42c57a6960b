import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { packageRoot } from '../root.js'

/** The folder of a model that comes with the package, such as `deem-nano`; undefined where none has the name. */
export function bundledFolder(name: string): string | undefined {
  if (!/^[a-z][\w-]*$/.test(name)) return undefined
  const folder = join(packageRoot, 'models', name)
  return existsSync(folder) ? folder : undefined
}
