// Rotary position embedding, half-rotation layout: (a, b) = (x[i], x[i + D/2]) becomes (a cos - b sin, b cos + a sin) with the
// angle position * base^(-2i/D), worked out in f32 as the published code does. The gradient is the rotation back.
#include "ops/rope.h"

#include <cmath>

#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<RopeTableArgs> rope_table_kernel{"rope_table"};
constinit Kernel<RopeArgs> rope_kernel{"rope"};

static void check_rows(const Tensor& x) {
  check<ShapeError>(x.ndim() == 4, "[rope] x must be [B, T, H, D] but has shape ", x.shape());
  check<ShapeError>(x.size(3) > 0 && x.size(3) % 2 == 0, "[rope] the head size must be even but x has shape ",
                    x.shape());
  check<DTypeError>(is_float(x.dtype()), "[rope] x must be floating but is ", x.dtype());
}

Tensor rope_table(const Tensor& positions_in, int64_t head_size, double base, Device device) {
  check<ShapeError>(positions_in.ndim() == 2, "[rope] positions must be [B, T] but has shape ", positions_in.shape());
  check<DTypeError>(positions_in.dtype() == DType::i64, "[rope] positions must be i64 but is ", positions_in.dtype());
  check<ShapeError>(head_size > 0 && head_size % 2 == 0, "[rope] the head size must be even but is ", head_size);
  check<ValueError>(std::isfinite(base) && base > 0, "[rope] base must be positive but is ", base);
  Tensor positions = on_host(positions_in);
  for (int64_t p : positions.values<int64_t>())
    check<IndexError>(p > -(int64_t(1) << 31) && p < (int64_t(1) << 31),
                      "[rope] positions must be below 2^31 but one is ", p);
  int64_t half = head_size / 2;
  std::vector<float> list(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; i++) list[size_t(i)] = 1.0f / std::pow(float(base), float(2 * i) / float(2 * half));
  Uploaded frequencies(list, device);
  positions = positions.to(device);
  Tensor table = Tensor::empty({positions.size(0), positions.size(1), 2, half}, DType::f32, device);
  rope_table_kernel(device, {.positions = positions.data<int64_t>(),
                             .frequencies = frequencies.data(),
                             .table = table.data<float>(),
                             .rows = positions.numel(),
                             .half = half});
  return table;
}

static Tensor rotate(const Tensor& x, const Tensor& table, float sign) {
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
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

Tensor rope(const Tensor& x, const Tensor& positions, double base) {
  check_rows(x);
  check<ShapeError>(positions.ndim() == 2 && positions.size(1) == x.size(1) &&
                        (positions.size(0) == x.size(0) || positions.size(0) == 1),
                    "[rope] positions must be [", x.size(0), " or 1, ", x.size(1), "] but has shape ",
                    positions.shape());
  return rope_by(x, rope_table(positions, x.size(3), base, x.device()));
}

Tensor rope_by(const Tensor& x_in, const Tensor& table) {
  check_rows(x_in);
  check_same_device("rope", {x_in, table});
  check<ShapeError>(table.ndim() == 4 && (table.size(0) == 1 || table.size(0) == x_in.size(0)) &&
                        table.size(1) == x_in.size(1) && 2 * table.size(3) == x_in.size(3),
                    "[rope] a table of shape ", table.shape(), " does not fit x of shape ", x_in.shape());
  Tensor x = x_in.strides()[3] == 1 ? x_in : contiguous(x_in);
  return record("rope", rotate(x, table, 1), {x},
                [table](const Tensor& dy, Needs) -> Tensors { return {rotate(dy, table, -1)}; });
}

}  // namespace deem
