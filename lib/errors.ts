/** Every `code` a {@link DeemError} can carry. `csrc/core/error.h` says when the engine throws which. */
export type ErrorCode =
  | 'ERR_SHAPE'
  | 'ERR_DTYPE'
  | 'ERR_DEVICE'
  | 'ERR_VALUE'
  | 'ERR_INDEX'
  | 'ERR_NOT_IMPLEMENTED'
  | 'ERR_NO_GRADIENT'
  | 'ERR_ABORTED'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_IO'
  | 'ERR_FORMAT'
  | 'ERR_CONFIG'
  | 'ERR_WEIGHTS'
  | 'ERR_DISPOSED'
  | 'ERR_INTERNAL'

const marker: unique symbol = Symbol.for('deem.error')

/** What deem throws and rejects with, from TypeScript and from the engine alike. */
export class DeemError extends Error {
  /** Which kind of mistake it is; stable across releases. */
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'DeemError'
    this.code = code
    Object.defineProperty(this, marker, { value: true })
  }

  /** True for errors of any copy of deem in the process, where `instanceof` sees only its own. */
  static isInstance(value: unknown): value is DeemError {
    return typeof value === 'object' && value !== null && marker in value
  }
}

/** @internal An error that another one led to: that one's message follows, and it is the `cause`. */
export function causedBy(cause: unknown, code: ErrorCode, message: string): DeemError {
  return new DeemError(code, `${message}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
}
