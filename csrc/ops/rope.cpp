// Rotary position embedding, half-rotation layout: (a, b) = (x[i], x[i + D/2]) becomes (a cos - b sin, b cos + a sin) with the
// angle position * base^(-2i/D), worked out in f32 as the published code does. The gradient is the rotation back.
#include "ops/rope.h"

#include <cmath>

#include "ops.h"

namespace deem {

constinit Kernel<RopeTableArgs> rope_table_kernel{"rope_table"};
constinit Kernel<RopeArgs> rope_kernel{"rope"};

static void check_rope(const Tensor& x, const Tensor& positions, double base) {
  check<ShapeError>(x.ndim() == 4, "[rope] x must be [B, T, H, D] but has shape ", x.shape());
  check<ShapeError>(x.size(3) > 0 && x.size(3) % 2 == 0, "[rope] the head size must be even but x has shape ",
                    x.shape());
  check<ShapeError>(positions.ndim() == 2 && positions.size(1) == x.size(1) &&
                        (positions.size(0) == x.size(0) || positions.size(0) == 1),
                    "[rope] positions must be [", x.size(0), " or 1, ", x.size(1), "] but has shape ",
                    positions.shape());
  check<DTypeError>(is_float(x.dtype()), "[rope] x must be floating but is ", x.dtype());
  check<DTypeError>(positions.dtype() == DType::i64, "[rope] positions must be i64 but is ", positions.dtype());
  check<ValueError>(std::isfinite(base) && base > 0, "[rope] base must be positive but is ", base);
}

static Tensor make_table(const Tensor& positions_in, int64_t half, double base) {
  Tensor positions = contiguous(positions_in);
  for (int64_t p : positions.values<int64_t>())
    check<IndexError>(p > -(int64_t(1) << 31) && p < (int64_t(1) << 31),
                      "[rope] positions must be below 2^31 but one is ", p);
  Tensor frequencies = Tensor::empty({half}), table = Tensor::empty({positions.size(0), positions.size(1), 2, half});
  for (int64_t i = 0; i < half; i++)
    frequencies.data<float>()[i] = 1.0f / std::pow(float(base), float(2 * i) / float(2 * half));
  rope_table_kernel(positions.device(), {.positions = positions.data<int64_t>(),
                                         .frequencies = frequencies.data<float>(),
                                         .table = table.data<float>(),
                                         .rows = positions.numel(),
                                         .half = half});
  return table;
}

static Tensor rotate(const Tensor& x, const Tensor& table, float sign) {
  Tensor y = Tensor::empty(x.shape(), x.dtype());
  const Shape& st = x.strides();
  rope_kernel(x.device(), {.x = x.raw(),
                           .batch = st[0],
                           .row = st[1],
                           .head = st[2],
                           .table = table.data<float>(),
                           .table_batch = table.size(0) == 1 ? 0 : table.strides()[0],
                           .y = y.raw(),
                           .batches = x.size(0),
                           .tokens = x.size(1),
                           .heads = x.size(2),
                           .half = x.size(3) / 2,
                           .sign = sign,
                           .dtype = x.dtype()});
  return y;
}

Tensor rope(const Tensor& x_in, const Tensor& positions, double base) {
  check_rope(x_in, positions, base);
  Tensor x = x_in.strides()[3] == 1 ? x_in : contiguous(x_in);
  Tensor table = make_table(positions, x.size(3) / 2, base);
  return record("rope", rotate(x, table, 1), {x},
                [table](const Tensor& dy, Needs) -> Tensors { return {rotate(dy, table, -1)}; });
}

}  // namespace deem
