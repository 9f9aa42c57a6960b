// y = (x - mean) * rstd * w + b, then silu if asked; mean and biased variance over the positions and channels of a
// group.
#include "ops/group_norm.h"

#include <algorithm>

#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<GroupNormArgs> group_norm_kernel{"group_norm"};
constinit Kernel<GroupNormBackwardArgs> group_norm_backward_kernel{"group_norm_backward"};

static void check_group_norm(const Tensor& x, const Tensor& w, const Tensor& b, int64_t groups, double eps) {
  check<ShapeError>(x.ndim() == 3 || x.ndim() == 4, "[group_norm] x must be [N, H, W, C] or [N, T, C] but has shape ",
                    x.shape());
  int64_t channels = x.size(-1);
  check<ShapeError>(channels > 0, "[group_norm] x needs channels but has shape ", x.shape());
  check<ValueError>(groups > 0 && channels % groups == 0, "[group_norm] groups must divide the ", channels,
                    " channels but is ", groups);
  check<ShapeError>(w.shape() == Shape{channels}, "[group_norm] weight must be [", channels, "] but has shape ",
                    w.shape());
  check<ShapeError>(b.shape() == w.shape(), "[group_norm] bias must be [", channels, "] but has shape ", b.shape());
  check<DTypeError>(is_float(x.dtype()), "[group_norm] x must be floating but is ", x.dtype());
  check<DTypeError>(w.dtype() == b.dtype() && (w.dtype() == x.dtype() || w.dtype() == DType::f32),
                    "[group_norm] weight and bias must both be ", x.dtype(), " or f32 but are ", w.dtype(), " and ",
                    b.dtype());
  check_same_device("group_norm", {x, w, b});
  check<ValueError>(eps >= 0, "[group_norm] eps must not be negative but is ", eps);
}

struct Extent {
  int64_t n, positions, channels, block, blocks;
};

// Blocks of about 16k elements stay in the second-level cache between the two passes over them.
static Extent extent_of(const Tensor& x) {
  Extent e{.n = x.size(0), .positions = 1, .channels = x.size(-1), .block = 0, .blocks = 0};
  for (int i = 1; i + 1 < x.ndim(); i++) e.positions *= x.size(i);
  e.block = std::max<int64_t>(1, 16384 / e.channels);
  e.blocks = (e.positions + e.block - 1) / e.block;
  return e;
}

// With xhat = (x - mean) * rstd, z = xhat * w + b and g = dy (times silu'(z)): dw = sum g * xhat, db = sum g,
// dx = rstd * (g * w - mean(g * w) - xhat * mean(g * w * xhat)), means over the group.
static Tensors group_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& b,
                                   const Tensor& mean, const Tensor& rstd, int64_t groups, bool silu, Needs needs) {
  Extent e = extent_of(x);
  auto floats = [&](const Shape& shape) { return Tensor::empty(shape, DType::f32, x.device()); };
  Tensor dx = needs[0] ? Tensor::empty(x.shape(), x.dtype(), x.device()) : Tensor();
  bool params = needs[1] || needs[2];
  Tensor dw = params ? floats({e.channels}) : Tensor(), db = params ? floats({e.channels}) : Tensor();
  Tensor block_dw = floats({e.n, e.blocks, e.channels}), block_db = floats({e.n, e.blocks, e.channels});
  Tensor group_dw = floats({e.n, groups}), group_db = floats({e.n, groups});
  group_norm_backward_kernel(x.device(), {.dy = dy.raw(),
                                          .x = x.raw(),
                                          .w = w.raw(),
                                          .b = b.raw(),
                                          .mean = mean.data<float>(),
                                          .rstd = rstd.data<float>(),
                                          .dx = dx ? dx.raw() : nullptr,
                                          .dw = dw ? dw.data<float>() : nullptr,
                                          .db = db ? db.data<float>() : nullptr,
                                          .block_dw = block_dw.data<float>(),
                                          .block_db = block_db.data<float>(),
                                          .group_dw = group_dw.data<float>(),
                                          .group_db = group_db.data<float>(),
                                          .n = e.n,
                                          .positions = e.positions,
                                          .channels = e.channels,
                                          .groups = groups,
                                          .block = e.block,
                                          .silu = silu,
                                          .dtype = x.dtype(),
                                          .param_dtype = w.dtype()});
  return {dx, needs[1] ? cast(dw, w.dtype()) : Tensor(), needs[2] ? cast(db, b.dtype()) : Tensor()};
}

Tensor group_norm(const Tensor& x_in, const Tensor& w_in, const Tensor& b_in, int64_t groups, double eps, bool silu) {
  check_group_norm(x_in, w_in, b_in, groups, eps);
  Tensor x = contiguous(x_in), w = contiguous(w_in), b = contiguous(b_in);
  Extent e = extent_of(x);
  auto floats = [&](const Shape& shape) { return Tensor::empty(shape, DType::f32, x.device()); };
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device()), mean = floats({e.n, groups}),
         rstd = floats({e.n, groups});
  Tensor block_mean = floats({e.n, e.blocks, e.channels}), block_m2 = floats({e.n, e.blocks, e.channels});
  group_norm_kernel(x.device(), {.x = x.raw(),
                                 .w = w.raw(),
                                 .b = b.raw(),
                                 .y = y.raw(),
                                 .mean = mean.data<float>(),
                                 .rstd = rstd.data<float>(),
                                 .block_mean = block_mean.data<float>(),
                                 .block_m2 = block_m2.data<float>(),
                                 .n = e.n,
                                 .positions = e.positions,
                                 .channels = e.channels,
                                 .groups = groups,
                                 .block = e.block,
                                 .eps = float(eps),
                                 .silu = silu,
                                 .dtype = x.dtype(),
                                 .param_dtype = w.dtype()});
  return record("group_norm", y, {x, w, b}, [=](const Tensor& dy, Needs needs) {
    return group_norm_backward(dy, x, w, b, mean, rstd, groups, silu, needs);
  });
}

}  // namespace deem
