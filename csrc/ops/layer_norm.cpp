// y = (x - mean) * rstd * w + b over the last axis; rstd = 1 / sqrt(variance + eps), biased variance.
#include "ops/layer_norm.h"

#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<LayerNormArgs> layer_norm_kernel{"layer_norm"};
constinit Kernel<LayerNormBackwardArgs> layer_norm_backward_kernel{"layer_norm_backward"};

static void check_layer_norm(const Tensor& x, const Tensor& w, const Tensor& b, double eps) {
  check<ShapeError>(x.ndim() >= 1 && x.size(-1) > 0, "[layer_norm] x needs a last axis but has shape ", x.shape());
  check<ShapeError>(w.shape() == Shape{x.size(-1)}, "[layer_norm] weight must be [", x.size(-1), "] but has shape ",
                    w.shape());
  check<ShapeError>(b.shape() == w.shape(), "[layer_norm] bias must be [", x.size(-1), "] but has shape ", b.shape());
  check<DTypeError>(is_float(x.dtype()), "[layer_norm] x must be floating but is ", x.dtype());
  check<DTypeError>(w.dtype() == b.dtype() && (w.dtype() == x.dtype() || w.dtype() == DType::f32),
                    "[layer_norm] weight and bias must both be ", x.dtype(), " or f32 but are ", w.dtype(), " and ",
                    b.dtype());
  check_same_device("layer_norm", {x, w, b});
  check<ValueError>(eps >= 0, "[layer_norm] eps must not be negative but is ", eps);
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * w; dw = sum dy * xhat; db = sum dy.
static Tensors layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& mean,
                                   const Tensor& rstd, Needs needs) {
  int64_t cols = x.size(-1);
  Tensor dx = needs[0] ? Tensor::empty(x.shape(), x.dtype(), x.device()) : Tensor();
  bool params = needs[1] || needs[2];
  Tensor dw = params ? Tensor::empty({cols}, DType::f32, x.device()) : Tensor(),
         db = params ? Tensor::empty({cols}, DType::f32, x.device()) : Tensor();
  layer_norm_backward_kernel(x.device(), {.dy = dy.raw(),
                                          .x = x.raw(),
                                          .w = w.raw(),
                                          .mean = mean.data<float>(),
                                          .rstd = rstd.data<float>(),
                                          .dx = dx ? dx.raw() : nullptr,
                                          .dw = params ? dw.data<float>() : nullptr,
                                          .db = params ? db.data<float>() : nullptr,
                                          .rows = x.numel() / cols,
                                          .cols = cols,
                                          .dtype = x.dtype(),
                                          .param_dtype = w.dtype()});
  return {dx, needs[1] ? cast(dw, w.dtype()) : Tensor(), needs[2] ? cast(db, w.dtype()) : Tensor()};
}

Tensor layer_norm(const Tensor& x_in, const Tensor& w_in, const Tensor& b_in, double eps) {
  check_layer_norm(x_in, w_in, b_in, eps);
  Tensor x = contiguous(x_in), w = contiguous(w_in), b = contiguous(b_in);
  int64_t cols = x.size(-1), rows = x.numel() / cols;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device()), mean = Tensor::empty({rows}, DType::f32, x.device()),
         rstd = Tensor::empty({rows}, DType::f32, x.device());
  layer_norm_kernel(x.device(), {.x = x.raw(),
                                 .w = w.raw(),
                                 .b = b.raw(),
                                 .y = y.raw(),
                                 .mean = mean.data<float>(),
                                 .rstd = rstd.data<float>(),
                                 .rows = rows,
                                 .cols = cols,
                                 .eps = float(eps),
                                 .dtype = x.dtype(),
                                 .param_dtype = w.dtype()});
  return record("layer_norm", y, {x, w, b},
                [=](const Tensor& dy, Needs needs) { return layer_norm_backward(dy, x, w, mean, rstd, needs); });
}

}  // namespace deem
