// geglu: y = a * gelu(b); swiglu: y = silu(a) * b; a and b are the two halves of the last axis.
#include "ops/gated.h"

#include "ops.h"

namespace deem {

constinit Kernel<GatedArgs> gated_kernel{"gated"};
constinit Kernel<GatedBackwardArgs> gated_backward_kernel{"gated_backward"};

static Tensor gated(const char* op, Gate gate, const Tensor& x_in) {
  check<DTypeError>(is_float(x_in.dtype()), "[", op, "] x must be floating but is ", x_in.dtype());
  check<ShapeError>(x_in.ndim() >= 1 && x_in.size(-1) > 0 && x_in.size(-1) % 2 == 0, "[", op,
                    "] the last axis must have two equal halves but x has shape ", x_in.shape());
  Tensor x = contiguous(x_in);
  int64_t n = x.size(-1) / 2, rows = x.numel() / (2 * n);
  Shape shape = x.shape();
  shape[shape.size() - 1] = n;
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  gated_kernel(x.device(), {gate, x.raw(), y.raw(), rows, n, x.dtype()});
  return record(op, y, {x}, [gate, rows, n, x = x.detach()](const Tensor& dy, Needs) {
    Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
    gated_backward_kernel(x.device(), {gate, dy.raw(), x.raw(), dx.raw(), rows, n, x.dtype()});
    return Tensors{dx};
  });
}

Tensor geglu(const Tensor& x) { return gated("geglu", Gate::geglu, x); }
Tensor swiglu(const Tensor& x) { return gated("swiglu", Gate::swiglu, x); }

}  // namespace deem
