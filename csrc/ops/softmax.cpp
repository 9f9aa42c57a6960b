// softmax: y = exp(x - max) / sum(exp(x - max)) over the last axis, dx = y * (dy - sum(dy * y)).
// log_softmax: y = x - max - log(sum(exp(x - max))), dx = dy - exp(y) * sum(dy).
#include "ops/softmax.h"

#include "ops.h"

namespace deem {

constinit Kernel<SoftmaxArgs> softmax_kernel{"softmax"};
constinit Kernel<SoftmaxBackwardArgs> softmax_backward_kernel{"softmax_backward"};

static Tensor softmax_rows(const char* op, const Tensor& x_in, bool log) {
  check<ShapeError>(x_in.ndim() >= 1 && x_in.size(-1) > 0, "[", op, "] x needs a last axis but has shape ",
                    x_in.shape());
  check<DTypeError>(is_float(x_in.dtype()), "[", op, "] x must be floating but is ", x_in.dtype());
  Tensor x = contiguous(x_in), y = Tensor::empty(x.shape(), x.dtype(), x.device());
  int64_t cols = x.size(-1), rows = x.numel() / cols;
  softmax_kernel(x.device(), {.x = x.raw(), .y = y.raw(), .rows = rows, .cols = cols, .log = log, .dtype = x.dtype()});
  // The result is saved detached: it must not own the graph that owns it.
  return record(op, y, {x}, [saved = y.detach(), rows, cols, log](const Tensor& dy, Needs) -> Tensors {
    Tensor dx = Tensor::empty(saved.shape(), saved.dtype(), saved.device());
    softmax_backward_kernel(dy.device(), {.dy = dy.raw(),
                                          .y = saved.raw(),
                                          .dx = dx.raw(),
                                          .rows = rows,
                                          .cols = cols,
                                          .log = log,
                                          .dtype = saved.dtype()});
    return {dx};
  });
}

Tensor softmax(const Tensor& x) { return softmax_rows("softmax", x, false); }
Tensor log_softmax(const Tensor& x) { return softmax_rows("log_softmax", x, true); }

}  // namespace deem
