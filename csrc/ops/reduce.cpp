// Sums over axes and what is made of them.
#include "ops/reduce.h"

#include <algorithm>
#include <cmath>

#include "ops.h"

namespace deem {

constinit Kernel<SumArgs> sum_kernel{"sum"};
constinit Kernel<SumSquaresArgs> sum_squares_kernel{"sum_squares"};
constinit Kernel<MseBackwardArgs> mse_backward_kernel{"mse_loss_backward"};
constinit Kernel<ArgmaxArgs> argmax_kernel{"argmax"};

static Tensor doubles(int64_t n, Device device) { return Tensor::empty({n}, DType::i64, device); }
static double* doubles_of(const Tensor& t) { return static_cast<double*>(t.raw()); }

// ---- sum, mean, sum_to --------------------------------------------------------------------------------------------

// x [outer, rows, inner], times the other where it is defined -> [outer, inner]
static Tensor sum_rows(const Tensor& x, const Tensor& times, int64_t outer, int64_t rows, int64_t inner, double scale,
                       DType to) {
  // Few long sums are cut into blocks to feed all threads, each at least 16384 elements.
  int64_t tiles = outer * ((inner + 511) / 512),
          enough = std::max<int64_t>(1, rows * std::min<int64_t>(inner, 512) / 16384);
  int64_t blocks = tiles >= 64 || rows == 0 ? 1 : std::min(enough, 64 / tiles),
          block_rows = (rows + blocks - 1) / blocks;
  blocks = rows == 0 ? 1 : (rows + block_rows - 1) / block_rows;
  Tensor y = Tensor::empty({outer, inner}, to, x.device()),
         partial = blocks > 1 ? doubles(outer * blocks * inner, x.device()) : Tensor();
  if (y.numel() > 0)
    sum_kernel(x.device(), {.x = x.raw(),
                            .times = times ? times.raw() : nullptr,
                            .y = y.raw(),
                            .partial = partial ? doubles_of(partial) : nullptr,
                            .outer = outer,
                            .rows = rows,
                            .inner = inner,
                            .blocks = blocks,
                            .block_rows = block_rows,
                            .scale = scale,
                            .x_dtype = x.dtype(),
                            .y_dtype = to});
  return y;
}

// scale * sum over the axes whose bit is set; the result has size 1 there. Neighbouring axes are summed as one.
static Tensor sum_axes(const Tensor& x_in, uint32_t axes, double scale) {
  Tensor x = contiguous(x_in.detach());
  Shape shape = x.shape();
  int pending = 0;  // groups of axes still to be summed
  auto summed = [&](int i) { return i >= 0 && shape[i] != 1 && (axes >> i & 1); };
  auto skip = [&](int i) {
    while (i >= 0 && shape[i] == 1) i--;
    return i;
  };
  for (int i = skip(shape.size() - 1); i >= 0; i = skip(i - 1)) pending += summed(i) && !summed(skip(i - 1));
  Tensor y = x;
  int64_t inner = 1, before = x.numel();
  if (before == 0) {  // nothing to add up, or nothing to compute
    for (int i = 0; i < shape.size(); i++)
      if (axes >> i & 1) shape[i] = 1;
    return Tensor::zeros(shape, x.dtype(), x.device());
  }
  for (int i = skip(shape.size() - 1); pending > 0;) {
    int64_t rows = 1;
    for (; i >= 0 && !summed(i); i = skip(i - 1)) inner *= shape[i];
    for (; summed(i); i = skip(i - 1)) rows *= shape[i];
    bool last = --pending == 0;
    before /= rows;
    y = sum_rows(y, {}, before / inner, rows, inner, last ? scale : 1, last ? x.dtype() : DType::f32);
  }
  for (int i = 0; i < shape.size(); i++)
    if (axes >> i & 1) shape[i] = 1;
  return y.view(shape, shape.contiguous_strides(), 0);
}

static uint32_t axes_mask(const char* op, const Tensor& x, const std::vector<int64_t>& axes) {
  uint32_t mask = axes.empty() ? (1u << x.ndim()) - 1 : 0;
  for (int64_t a : axes) {
    uint32_t bit = 1u << normalize_axis(op, a, x.ndim());
    check<ShapeError>(!(mask & bit), "[", op, "] axis ", a, " is named twice");
    mask |= bit;
  }
  return mask;
}

static Tensor reduce(const char* op, const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims, bool mean) {
  check<DTypeError>(is_float(x.dtype()), "[", op, "] x must be floating but is ", x.dtype());
  uint32_t mask = axes_mask(op, x, axes);
  int64_t count = 1;
  Shape shape;
  for (int i = 0; i < x.ndim(); i++) {
    if (mask >> i & 1) count *= x.size(i);
    if (keep_dims || !(mask >> i & 1)) shape.push_back(mask >> i & 1 ? 1 : x.size(i));
  }
  check<ShapeError>(count > 0 || !mean, "[", op, "] needs at least one element along the axes but x has shape ",
                    x.shape());
  double scale = mean ? 1.0 / double(count) : 1;
  Tensor kept = sum_axes(x, mask, scale);
  return record(op, kept.view(shape, shape.contiguous_strides(), 0), {x},
                [scale, from = x.shape(), with_ones = kept.shape()](const Tensor& dy, Needs) {
                  Tensor d = reshape(dy, with_ones);
                  return Tensors{broadcast_to(scale == 1 ? d : mul_scalar(d, scale), from)};
                });
}

Tensor sum(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims) {
  return reduce("sum", x, axes, keep_dims, false);
}
Tensor mean(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims) {
  return reduce("mean", x, axes, keep_dims, true);
}

Tensor sum_to(const Tensor& x, const Shape& shape) {
  if (shape == x.shape()) return x;
  check<DTypeError>(is_float(x.dtype()), "[sum_to] x must be floating but is ", x.dtype());
  check<ShapeError>(broadcast_shapes("sum_to", shape, x.shape()) == x.shape(), "[sum_to] ", shape,
                    " does not broadcast to ", x.shape());
  int lead = x.ndim() - shape.size();
  uint32_t mask = 0;
  for (int i = 0; i < x.ndim(); i++)
    if (i < lead || shape[i - lead] != x.size(i)) mask |= 1u << i;
  Tensor y = sum_axes(x, mask, 1).view(shape, shape.contiguous_strides(), 0);
  return record("sum_to", y, {x},
                [from = x.shape()](const Tensor& dy, Needs) { return Tensors{broadcast_to(dy, from)}; });
}

Tensor sum_products_to(const Tensor& a, const Tensor& b, const Shape& shape) {
  const Shape& all = a.shape();
  const int lead = all.size() - shape.size();
  auto kept = [&](int i) { return i < lead ? int64_t(1) : shape[i - lead]; };
  int64_t outer = 1, rows = 1, inner = 1;
  int i = 0;
  for (; i < all.size() && kept(i) == all[i]; i++) outer *= all[i];
  for (; i < all.size() && kept(i) == 1; i++) rows *= all[i];
  for (; i < all.size() && kept(i) == all[i]; i++) inner *= all[i];
  if (i < all.size() || b.shape() != all || inner == 1 || rows == 0 || !a.is_contiguous() || !b.is_contiguous())
    return sum_to(mul(a, b), shape);
  return sum_rows(a, b, outer, rows, inner, 1, a.dtype()).view(shape, shape.contiguous_strides(), 0);
}

// ---- mse_loss, norm -----------------------------------------------------------------------------------------------

// Writes sum_i (a[i] - b[i])^2 to `sum` or its mean to `mean`; b may be undefined, meaning 0.
static void sum_squares(const Tensor& a, const Tensor& b, double* sum, float* mean) {
  int64_t n = a.numel(), block = std::max<int64_t>(16384, (n + 255) / 256), blocks = (n + block - 1) / block;
  Tensor partial = doubles(blocks, a.device());
  sum_squares_kernel(a.device(), {.a = a.raw(),
                                  .b = b ? b.raw() : nullptr,
                                  .partial = doubles_of(partial),
                                  .sum = sum,
                                  .mean = mean,
                                  .n = n,
                                  .blocks = blocks,
                                  .block = block,
                                  .dtype = a.dtype()});
}

// d/dx = 2 (x - target) / n
Tensor mse_loss(const Tensor& x_in, const Tensor& target_in) {
  check<ShapeError>(x_in.shape() == target_in.shape(), "[mse_loss] shapes must be equal but are ", x_in.shape(),
                    " and ", target_in.shape());
  check<DTypeError>(is_float(x_in.dtype()) && x_in.dtype() == target_in.dtype(),
                    "[mse_loss] both must be of one floating dtype but are ", x_in.dtype(), " and ", target_in.dtype());
  check<DeviceError>(x_in.device() == target_in.device(), "[mse_loss] x and target are on different devices");
  check<ShapeError>(x_in.numel() > 0, "[mse_loss] needs at least one element but the shape is ", x_in.shape());
  Tensor x = contiguous(x_in.detach()), target = contiguous(target_in.detach());
  Tensor y = Tensor::empty({}, DType::f32, x.device());
  sum_squares(x, target, nullptr, y.data<float>());
  return record("mse_loss", y, {x_in, target_in}, [x, target](const Tensor& dy, Needs needs) {
    Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
    mse_backward_kernel(x.device(), {x.raw(), target.raw(), dy.data<float>(), dx.raw(), x.numel(),
                                     float(2.0 / double(x.numel())), x.dtype()});
    return Tensors{needs[0] ? dx : Tensor(), needs[1] ? neg(dx) : Tensor()};
  });
}

double norm(const Tensor& x) {
  check<DTypeError>(is_float(x.dtype()), "[norm] x must be floating but is ", x.dtype());
  Tensor sum = doubles(1, x.device());
  sum_squares(contiguous(x.detach()), {}, doubles_of(sum), nullptr);
  return std::sqrt(*doubles_of(sum.to(Device::cpu)));
}

// ---- argmax -------------------------------------------------------------------------------------------------------

// NaN counts as the largest number.
Tensor argmax(const Tensor& x_in) {
  check<DTypeError>(is_float(x_in.dtype()), "[argmax] x must be floating but is ", x_in.dtype());
  check<ShapeError>(x_in.ndim() >= 1 && x_in.size(-1) > 0, "[argmax] x needs a last axis but has shape ", x_in.shape());
  Tensor x = contiguous(x_in.detach());
  Tensor y = Tensor::empty(Shape(x.shape().begin(), x.shape().end() - 1), DType::i64, x.device());
  argmax_kernel(x.device(), {x.raw(), y.data<int64_t>(), y.numel(), x.size(-1), x.dtype()});
  return no_gradient("argmax", y, {x_in});
}

}  // namespace deem
