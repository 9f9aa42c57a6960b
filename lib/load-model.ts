import { DeemError } from './errors.js'
import { Pipeline } from './pipeline/pipeline.js'
import { type LoadDeemOptions, loadDeem } from './weights/load.js'
import type { DeemPieces } from './weights/pieces.js'

export type LoadOptions = Omit<LoadDeemOptions, 'strict'>

/**
 * A model with its tokenizer: from a DEEM folder, ours or official, or from the pieces of a new one. See {@link loadDeem} for what may
 * lie in them and how it fails; without a tokenizer there is no pipeline: ERR_IO.
 */
export async function loadModel(source: string | DeemPieces, options: LoadOptions = {}): Promise<Pipeline> {
  const { model, tokenizer, config } = await loadDeem(source, options)
  if (!tokenizer) {
    model.dispose()
    throw new DeemError('ERR_IO', 'the weights have no tokenizer beside them: loadDeem gives the model alone')
  }
  return new Pipeline({ model, tokenizer, config })
}
