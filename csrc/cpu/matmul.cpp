#include "ops/matmul.h"

#include <algorithm>

#include "cpu/dnnl.h"
#include "cpu/wide.h"

namespace deem {

constinit Kernel<ConvertRowsArgs> convert_rows_kernel{"convert_rows"};

static onednn::Matrix matrix(const GemmOperand& o) { return {o.data, o.rows, o.cols, o.row_stride, o.col_stride}; }

static void multiply(const GemmArgs& a) {
  onednn::gemm({.batch = a.batch,
                .a = matrix(a.a),
                .b = matrix(a.b),
                .a_step = a.a.step,
                .b_step = a.b.step,
                .c_step = a.a.rows * a.c_row_stride,
                .c_row_stride = a.c_row_stride,
                .bias = a.bias,
                .c = a.c,
                .dtype = a.dtype,
                .c_dtype = a.c_dtype});
}

// ---- products in f32 of numbers in 16 bits ------------------------------------------------------------------------------

static const void* offset(const void* data, int64_t elements, DType dtype) {
  return static_cast<const char*>(data) + elements * int64_t(size_of(dtype));
}

// Columns begin..begin + count of every item of an operand, densely as f32, in the order they lie in.
static GemmOperand widen(const GemmOperand& o, int64_t batch, int64_t begin, int64_t count, DType dtype, float* to) {
  const bool rows_lie = o.col_stride == 1;
  const int64_t lines = rows_lie ? o.rows : count, length = rows_lie ? count : o.rows;
  const int64_t stride = rows_lie ? o.row_stride : o.col_stride, items = o.step == 0 ? 1 : batch;
  for (int64_t i = 0; i < items; i++)
    convert_rows_kernel(Device::cpu, {.x = offset(o.data, i * o.step + begin * o.col_stride, dtype),
                                      .y = to + i * lines * length,
                                      .rows = lines,
                                      .cols = length,
                                      .x_stride = stride,
                                      .y_stride = length,
                                      .from = dtype,
                                      .to = DType::f32});
  return {to, o.rows, count, rows_lie ? length : 1, rows_lie ? 1 : length, o.step == 0 ? 0 : lines * length};
}

// Columns of the second operand are taken a tile at a time, so that a tile in f32 stays in cache and scratch memory small.
static void multiply_wide(const GemmArgs& a) {
  constexpr int64_t kTileNumbers = 1 << 22, kResultNumbers = 1 << 24, kFewest = 64;
  const int64_t m = a.a.rows, k = a.a.cols, n = a.b.cols;
  const int64_t most = std::min(kTileNumbers / std::max<int64_t>(k, 1), kResultNumbers / std::max<int64_t>(m, 1));
  const int64_t tile = a.batch > 1 ? n : std::min(n, std::max(kFewest, most / kFewest * kFewest));
  Scratch wide_a((a.a.step == 0 ? 1 : a.batch) * m * k, DType::f32);
  Scratch wide_b((a.b.step == 0 ? 1 : a.batch) * k * tile, DType::f32);
  Scratch wide_bias, wide_c;
  if (a.bias) {
    wide_bias.take(n, DType::f32);
    convert_rows_kernel(Device::cpu, {a.bias, wide_bias.data(), 1, n, n, n, a.dtype, DType::f32});
  }
  if (a.c_dtype != DType::f32) wide_c.take(a.batch * m * tile, DType::f32);
  const GemmOperand first = widen(a.a, a.batch, 0, k, a.dtype, wide_a.floats());
  for (int64_t at = 0; at < n; at += tile) {
    const int64_t count = std::min(tile, n - at);
    GemmArgs part = a;
    part.a = first;
    part.b = widen(a.b, a.batch, at, count, a.dtype, wide_b.floats());
    part.bias = a.bias ? wide_bias.floats() + at : nullptr;
    part.dtype = part.c_dtype = DType::f32;
    if (wide_c.data()) {
      part.c = wide_c.data();
      part.c_row_stride = count;
    } else {
      part.c = static_cast<float*>(a.c) + at;
    }
    multiply(part);
    if (wide_c.data())
      convert_rows_kernel(Device::cpu, {.x = part.c,
                                        .y = const_cast<void*>(offset(a.c, at, a.c_dtype)),
                                        .rows = a.batch * m,
                                        .cols = count,
                                        .x_stride = count,
                                        .y_stride = a.c_row_stride,
                                        .from = DType::f32,
                                        .to = a.c_dtype});
  }
}

static void gemm(const GemmArgs& a) {
  if (multiplies(a.dtype)) multiply(a);
  else multiply_wide(a);
}

static const Register r{gemm_kernel, Device::cpu, gemm};

}  // namespace deem
