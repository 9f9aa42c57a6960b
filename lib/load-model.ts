import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { causedBy, DeemError } from './errors.js'
import { parsePythonJson } from './json.js'
import { Deem } from './models/deem.js'
import type { DType } from './native.js'
import { Pipeline } from './pipeline/pipeline.js'
import type { CallOptions } from './task.js'
import { Tokenizer } from './tokenizer/index.js'

export interface LoadOptions extends CallOptions {
  /** Of the parameters. Default f32. */
  dtype?: DType
}

/**
 * A model with its tokenizer from a checkpoint folder: config.json, model.safetensors, tokenizer.json or tokenizer.model. Throws ERR_IO,
 * ERR_FORMAT, ERR_CONFIG or ERR_WEIGHTS naming the file and what is wrong.
 */
export async function loadModel(folder: string, { dtype = 'f32', ...call }: LoadOptions = {}): Promise<Pipeline> {
  const file = join(folder, 'config.json')
  let json: string
  try {
    json = await readFile(file, 'utf8')
  } catch (cause) {
    throw causedBy(cause, 'ERR_IO', `there is no checkpoint in '${folder}'`)
  }
  let config: unknown
  try {
    config = parsePythonJson(json)
  } catch (cause) {
    throw causedBy(cause, 'ERR_FORMAT', `'${file}' is not JSON`)
  }
  if (typeof config !== 'object' || config === null) throw new DeemError('ERR_FORMAT', `'${file}' holds no object`)
  const ids = (config as { special_token_dict?: { pad_token_id?: number } }).special_token_dict
  const tokenizer = await Tokenizer.load(folder, ids?.pad_token_id === undefined ? {} : { padId: ids.pad_token_id })
  const model = await Deem.build(config, { dtype, signal: call.signal })
  try {
    await model.load(join(folder, 'model.safetensors'), call)
  } catch (error) {
    model.dispose()
    throw error
  }
  return new Pipeline({ model, tokenizer, config })
}
