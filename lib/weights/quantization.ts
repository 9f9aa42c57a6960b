/** Which weights of a model lie in few bits, as its configuration says it. */
import { lazySchema, parseConfig } from '../config.js'
import { DeemError } from '../errors.js'
import type { JsonObject } from '../json.js'

export interface Quantization {
  bits: 8 | 4
  /** Numbers of a row that share a scale: 32 (default), 64 or 128. */
  group?: 32 | 64 | 128
  /** Without an offset in each group: half a bit a number less at 32, and less exact where a group is all of one sign. Default true. */
  symmetric?: boolean
  /** Names of weights of linear layers, `*` for anything. Default the layers of the language model: its attention and MLP. */
  include?: readonly string[]
}

/** `int8` and `int4` are symmetric in groups of 32. */
export type QuantizeOption = 'int8' | 'int4' | Quantization

const schema = lazySchema((z) =>
  z.strictObject({
    bits: z.union([z.literal(8), z.literal(4)]),
    group: z.union([z.literal(32), z.literal(64), z.literal(128)]).default(32),
    symmetric: z.boolean().default(true),
    include: z.array(z.string()).min(1).optional(),
  }),
)

/** The configuration with weights in few bits. Throws ERR_CONFIG for unknown settings, and where it has other ones already. */
export function quantizedConfig(config: JsonObject, option: QuantizeOption): JsonObject {
  const named = { int8: { bits: 8 }, int4: { bits: 4 } } as const
  if (typeof option === 'string' && !Object.hasOwn(named, option))
    throw new DeemError('ERR_CONFIG', `quantize must be int8, int4 or settings but is '${option}'`)
  const quantization = parseConfig(schema, typeof option === 'string' ? named[option] : option, 'quantize')
  const stored = config['quantization']
  if (
    stored !== undefined &&
    JSON.stringify(parseConfig(schema, stored, 'quantization')) !== JSON.stringify(quantization)
  )
    throw new DeemError('ERR_CONFIG', `the weights are quantised already, as ${JSON.stringify(stored)}`)
  return { ...config, quantization }
}
