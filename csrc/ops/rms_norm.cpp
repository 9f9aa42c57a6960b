// y = x * rstd * w over the last axis; rstd = 1 / sqrt(mean(x^2) + eps).
#include "ops/rms_norm.h"

#include <algorithm>

#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<RmsNormArgs> rms_norm_kernel{"rms_norm"};
constinit Kernel<RmsNormBackwardArgs> rms_norm_backward_kernel{"rms_norm_backward"};

static void check_rms_norm(const Tensor& x, const Tensor& w, double eps) {
  check<ShapeError>(x.ndim() >= 1 && x.size(-1) > 0, "[rms_norm] x needs a last axis but has shape ", x.shape());
  check<ShapeError>(w.shape() == Shape{x.size(-1)}, "[rms_norm] weight must be [", x.size(-1), "] but has shape ",
                    w.shape());
  check<DTypeError>(is_float(x.dtype()), "[rms_norm] x must be floating but is ", x.dtype());
  check<DTypeError>(w.dtype() == x.dtype() || w.dtype() == DType::f32, "[rms_norm] weight must be ", x.dtype(),
                    " or f32 but is ", w.dtype());
  check_same_device("rms_norm", {x, w});
  check<ValueError>(eps >= 0, "[rms_norm] eps must not be negative but is ", eps);
}

// dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * w, xhat = x * rstd; dw = sum dy * xhat.
static Tensors rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& rstd, Needs needs) {
  int64_t cols = x.size(-1), rows = x.numel() / cols;
  // A function of the shape alone, so that dw has the same bits at any thread count.
  int64_t chunks = std::clamp<int64_t>(rows / 16, 1, 64);
  Tensor dx = needs[0] ? Tensor::empty(x.shape(), x.dtype(), x.device()) : Tensor();
  Tensor part = needs[1] ? Tensor::empty({chunks, cols}, DType::f32, x.device()) : Tensor(),
         dw = needs[1] ? Tensor::empty({cols}, DType::f32, x.device()) : Tensor();
  rms_norm_backward_kernel(x.device(), {.dy = dy.raw(),
                                        .x = x.raw(),
                                        .w = w.raw(),
                                        .rstd = rstd.data<float>(),
                                        .dx = dx ? dx.raw() : nullptr,
                                        .part = part ? part.data<float>() : nullptr,
                                        .dw = dw ? dw.data<float>() : nullptr,
                                        .rows = rows,
                                        .cols = cols,
                                        .chunks = chunks,
                                        .dtype = x.dtype(),
                                        .param_dtype = w.dtype()});
  return {dx, dw ? cast(dw, w.dtype()) : Tensor()};
}

Tensor rms_norm(const Tensor& x_in, const Tensor& w_in, double eps) {
  check_rms_norm(x_in, w_in, eps);
  Tensor x = contiguous(x_in), w = contiguous(w_in);
  int64_t cols = x.size(-1), rows = x.numel() / cols;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device()), rstd = Tensor::empty({rows}, DType::f32, x.device());
  rms_norm_kernel(x.device(), {.x = x.raw(),
                               .w = w.raw(),
                               .y = y.raw(),
                               .rstd = rstd.data<float>(),
                               .rows = rows,
                               .cols = cols,
                               .eps = float(eps),
                               .dtype = x.dtype(),
                               .param_dtype = w.dtype()});
  return record("rms_norm", y, {x, w},
                [=](const Tensor& dy, Needs needs) { return rms_norm_backward(dy, x, w, rstd, needs); });
}

}  // namespace deem
