// Leaves with gradients of one's choice, for tests of optimizers.
import { backward, type DType, ops, type Tensor, tensor } from 'deem'

/** A leaf with these values, rounded to the dtype. */
export function trainable(values: ArrayLike<number>, dtype: DType): Tensor {
  const x = ops.cast(tensor(Float32Array.from(values), [values.length]), dtype)
  x.requiresGrad = true
  return x
}

/** Leaves `gradient`, which must be exact in the dtype, in x.grad. */
export async function give(x: Tensor, gradient: ArrayLike<number>): Promise<void> {
  const g = ops.cast(tensor(Float32Array.from(gradient), [gradient.length]), x.dtype)
  await backward([ops.mulScalar(x, 1)], [g])
}
