// Kernel arguments of the reductions. Sums run in double, in an order that depends on the shape alone.
#pragma once
#include "core/kernel.h"
#include "core/tensor.h"

namespace deem {

// y[o, i] = scale * sum_r x[o, r, i] times[o, r, i]
struct SumArgs {
  const void* x;
  const void* times;  // of x's dtype, or null for 1; null where inner is 1. Products are rounded to f32
  void* y;
  double* partial;  // [outer, blocks, inner] where blocks > 1
  int64_t outer, rows, inner;
  int64_t blocks, block_rows;  // the rows are summed in blocks, and then the blocks
  double scale;
  DType x_dtype, y_dtype;
};
extern Kernel<SumArgs> sum_kernel;

// sum_i (a[i] - b[i])^2, or of a[i]^2 where b is null
struct SumSquaresArgs {
  const void *a, *b;
  double* partial;  // [blocks]
  double* sum;      // the sum, where not null
  float* mean;      // sum / n, where not null
  int64_t n, blocks, block;
  DType dtype;
};
extern Kernel<SumSquaresArgs> sum_squares_kernel;

// dx = (x - target) * scale * *dy
struct MseBackwardArgs {
  const void *x, *target;
  const float* dy;
  void* dx;
  int64_t n;
  float scale;
  DType dtype;
};
extern Kernel<MseBackwardArgs> mse_backward_kernel;

struct ArgmaxArgs {
  const void* x;
  int64_t* y;
  int64_t rows, cols;
  DType dtype;
};
extern Kernel<ArgmaxArgs> argmax_kernel;

// sum_to(mul(a, b), shape), in one pass where only neighbouring axes are summed. Not recorded.
Tensor sum_products_to(const Tensor& a, const Tensor& b, const Shape& shape);

}  // namespace deem
