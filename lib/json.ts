import { readFile, rename, rm, writeFile } from 'node:fs/promises'
import { causedBy, DeemError } from './errors.js'

export type JsonObject = Record<string, unknown>

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/**
 * Parses JSON as Python writes it: numbers that are not finite stand in it as bare words. `Infinity` becomes Infinity, `NaN` null.
 * Throws SyntaxError.
 */
export function parsePythonJson(text: string): unknown {
  return JSON.parse(
    text.replace(/"(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b/g, (token) =>
      token.endsWith('Infinity') ? token.replace('Infinity', '1e999') : token === 'NaN' ? 'null' : token,
    ),
  )
}

/** Reads a file that holds one JSON object. Throws ERR_IO or ERR_FORMAT naming the file. */
export async function readJson(path: string): Promise<JsonObject> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be read`)
  }
  let value: unknown
  try {
    value = parsePythonJson(text)
  } catch (cause) {
    throw causedBy(cause, 'ERR_FORMAT', `'${path}' is not JSON`)
  }
  if (!isJsonObject(value)) throw new DeemError('ERR_FORMAT', `'${path}' must hold a JSON object`)
  return value
}

/** Writes a JSON file whole: beside the old one, then swapped in. Throws ERR_IO naming the file. */
export async function writeJson(path: string, value: object): Promise<void> {
  const fresh = `${path}.${process.pid}.new`
  try {
    await writeFile(fresh, `${JSON.stringify(value, null, 2)}\n`, { flush: true })
    await rename(fresh, path)
  } catch (cause) {
    await rm(fresh, { force: true })
    throw causedBy(cause, 'ERR_IO', `'${path}' cannot be written`)
  }
}
