/** Folders that appear as a whole or not at all. */
import { mkdir, readdir, realpath, rename, rm, rmdir, stat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { causedBy, DeemError } from '../errors.js'

/**
 * Lets `write` fill a folder beside `target`, then puts it in its place. Where that fails, or `write` does, nothing is left behind and
 * what was there stays. Throws ERR_IO where `target` is a file, or holds something and `force` is not set.
 */
export async function writeFolder<T>(
  target: string,
  force: boolean,
  write: (folder: string) => Promise<T>,
): Promise<T> {
  const path = await realpath(target).catch(() => resolve(target))
  await checkFree(path, force)
  const [fresh, old] = ['new', 'old'].map((kind) => `${path}.${crypto.randomUUID().slice(0, 8)}.${kind}`) as [
    string,
    string,
  ]
  const made = await inFolder(path, mkdir(fresh, { recursive: true }))
  let result: T
  try {
    result = await write(fresh)
    await checkFree(path, force) // it took a while
    const there = await exists(path)
    if (there) await inFolder(path, rename(path, old))
    await inFolder(path, rename(fresh, path)).catch(async (error: unknown) => {
      if (there) await rename(old, path)
      throw error
    })
  } catch (error) {
    await rm(fresh, { recursive: true, force: true })
    // The folders above that did not exist before, unless somebody else put something there.
    for (let above = dirname(fresh); made !== undefined && above.startsWith(made); above = dirname(above))
      if (
        !(await rmdir(above).then(
          () => true,
          () => false,
        ))
      )
        break
    throw error
  }
  await inFolder(old, rm(old, { recursive: true, force: true }))
  return result
}

/** Throws ERR_IO where a folder cannot be written without loss. */
export async function checkFree(path: string, force: boolean): Promise<void> {
  if (!(await exists(path))) return
  const held = await inFolder(path, readdir(path))
  if (held.length > 0 && !force)
    throw new DeemError('ERR_IO', `'${path}' is not empty (${held.slice(0, 3).join(', ')}); only force replaces it`)
}

/** Whether `inner` is `outer` or lies in it; false where one of them does not exist. */
export async function contains(outer: string, inner: string): Promise<boolean> {
  const [a, b] = await Promise.all([outer, inner].map((path) => realpath(path).catch(() => undefined)))
  return a !== undefined && b !== undefined && join(b, '/').startsWith(join(a, '/'))
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  )
}

async function inFolder<T>(path: string, action: Promise<T>): Promise<T> {
  try {
    return await action
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be written`)
  }
}
