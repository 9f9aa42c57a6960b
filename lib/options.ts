import { DeemError } from './errors.js'

/** @internal Options as the engine takes them. JSON would turn NaN and infinities to null, which means: the default. */
export function optionsJson(options: object): string {
  return JSON.stringify(options, (key, value: unknown) => {
    if (typeof value === 'bigint' || (typeof value === 'number' && !Number.isFinite(value)))
      throw new DeemError('ERR_CONFIG', `'${key}' must be a finite number but is ${value}`)
    return value
  })
}
