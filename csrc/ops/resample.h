// Kernel arguments of the resampling operations.
#pragma once
#include "core/kernel.h"

namespace deem {

// y[a, o, :] = sum of weight[k] * x[a, index[k], :] over k in begin[o]..begin[o + 1]: one axis of a separable filter,
// or, with the transposed list, of its gradient.
struct ResampleAxisArgs {
  const void* x;
  float* y;
  const int64_t *begin, *index;
  const float* weight;
  int64_t outer, in, out, inner;
  DType dtype;  // of x
};
extern Kernel<ResampleAxisArgs> resample_axis_kernel;

// Outputs rows[s]..rows[s + 1] show source row s, likewise columns; together they cover every output once.
struct ResizeNearestArgs {
  const void* x;                  // backward: dy
  void* y;                        // backward: dx
  const int64_t *rows, *columns;  // [height + 1], [width + 1]
  int64_t n, height, width, out_height, out_width, channels;
  DType dtype;
};
extern Kernel<ResizeNearestArgs> resize_nearest_kernel;
extern Kernel<ResizeNearestArgs> resize_nearest_backward_kernel;

}  // namespace deem
