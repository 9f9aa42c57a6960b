// Mistakes in the batch of the smallest whole model.
import { DeemError, type DeemTrainInputs, type ErrorCode, ops, type Tensor, tensor } from 'deem'
import { normals, whole } from './model.js'

export const codeOf = (error: unknown) => (DeemError.isInstance(error) ? error.code : String(error))

/** A call laid over a good one, and what must be said to it. */
export interface Bad {
  code: ErrorCode
  says: RegExp
  inputs?: (good: DeemTrainInputs) => Record<string, Tensor | undefined>
  options?: object
  method?: string
}

export const ids = (good: DeemTrainInputs) => [...good.text_ids.toFloat32()]
/** The ids with one replaced. */
export const withId = (position: number, id: number) => (good: DeemTrainInputs) => {
  const row = ids(good)
  row[position] = id
  return { text_ids: whole(row, [2, 39]) }
}
/** A floating input with one element replaced. */
export const spoiled = (name: keyof DeemTrainInputs, value: number) => (good: DeemTrainInputs) => {
  const x = good[name] as Tensor
  const data = x.toFloat32()
  data[5] = value
  return { [name]: tensor(data, x.shape) }
}
export const put = (name: string, make: () => Tensor | undefined) => () => ({ [name]: make() })
export const cast =
  (name: keyof DeemTrainInputs, dtype: 'f32' | 'i64' | 'i32' | 'u8' | 'bf16') => (good: DeemTrainInputs) => ({
    [name]: ops.cast(good[name] as Tensor, dtype),
  })
export const floats = (...shape: number[]) => normals(shape, 1)
