import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** The folder of a model that comes with the package, such as `deem-nano`; undefined where none has the name. */
export function bundledFolder(name: string): string | undefined {
  if (!/^[a-z][\w-]*$/.test(name)) return undefined
  const folder = fileURLToPath(new URL(`../../models/${name}`, import.meta.url))
  return existsSync(folder) ? folder : undefined
}
