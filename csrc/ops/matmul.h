#pragma once
#include "core/kernel.h"

namespace deem {

// One operand as rows x cols; one of its strides (elements) is 1.
struct GemmOperand {
  const void* data;
  int64_t rows, cols, row_stride, col_stride, step;  // step: elements from one item of the batch to the next
};
struct GemmArgs {
  int64_t batch;
  GemmOperand a, b;
  const void* bias;      // [cols of b] or null
  void* c;               // [batch, rows, cols]
  int64_t c_row_stride;  // elements; cols or more
  DType dtype, c_dtype;
};
extern Kernel<GemmArgs> gemm_kernel;

// y[c] = sum over rows of x[r, c], accumulated in f32.
struct ColumnSumArgs {
  const void* x;
  void* y;
  int64_t rows, cols;
  DType dtype;
};
extern Kernel<ColumnSumArgs> column_sum_kernel;

}  // namespace deem
