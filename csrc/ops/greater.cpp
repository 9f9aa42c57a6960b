// y = x > limit, as u8. No gradient: it is a mask.
#include "ops/greater.h"

#include "ops.h"

namespace deem {

constinit Kernel<GreaterArgs> greater_kernel{"greater"};

Tensor greater(const Tensor& x_in, double limit) {
  check<DTypeError>(is_float(x_in.dtype()), "[greater] x must be floating but is ", x_in.dtype());
  Tensor x = contiguous(x_in.detach());
  Tensor y = Tensor::empty(x.shape(), DType::u8, x.device());
  greater_kernel(x.device(), {x.raw(), y.data<uint8_t>(), x.numel(), float(limit), x.dtype()});
  return y;
}

}  // namespace deem
