#pragma once
#include "core/kernel.h"

namespace deem {

// One operand as rows x cols; one of its strides (elements) is 1.
struct GemmOperand {
  const void* data;
  int64_t rows, cols, row_stride, col_stride, step;  // step: elements from one item of the batch to the next
};
// What a kernel may do to c before it leaves the caches, rounding after each step; it says so. Else the caller does it.
struct GemmAfter {
  const void* scale;     // [cols of b], or null
  const void* residual;  // as c, which lies elsewhere and has no gaps between rows
  bool done = false;
};
struct GemmArgs {
  int64_t batch;
  GemmOperand a, b;
  const void* bias;      // [cols of b] or null
  void* c;               // [batch, rows, cols]
  int64_t c_row_stride;  // elements; cols or more
  DType dtype, c_dtype;
  const void* packed_b = nullptr;  // b as prepack_kernel left it, for the only item; or null
  GemmAfter* after = nullptr;      // of the only item
};
extern Kernel<GemmArgs> gemm_kernel;

// packed: the weight [n, k] in the order that products of many rows read, where that is faster than as it lies; else left undefined.
struct PrepackArgs {
  const Tensor& weight;  // contiguous
  Tensor& packed;
};
extern Kernel<PrepackArgs> prepack_kernel;

// y[m, n] = sum over k of x[m, k] weight[n, k] + bias[n], for the few rows of a decoding step: every weight is read once.
struct FewRowsArgs {
  const void* x;       // [m, k]
  const void* weight;  // [n, k]
  const void* bias;    // [n] or null
  void* y;             // [m, n]
  float* scratch;      // [m, k], null but on the CPU
  int64_t m, n, k;
  DType dtype, y_dtype;  // of x, weight and bias; of y
};
constexpr int64_t kFewRows = 8,
                  kManyWeights = 1 << 18;  // smaller weights lie in a CPU's cache, where nothing is gained
extern Kernel<FewRowsArgs> few_rows_kernel;

// y[c] = sum over rows of x[r, c], accumulated in f32.
struct ColumnSumArgs {
  const void* x;
  void* y;
  int64_t rows, cols;
  DType dtype;
};
extern Kernel<ColumnSumArgs> column_sum_kernel;

}  // namespace deem
