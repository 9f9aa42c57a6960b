// Kernel arguments of rms_norm; kernels assume what the front end checked: contiguous rows, matching dtypes.
#pragma once
#include "core/kernel.h"

namespace deem {

struct RmsNormArgs {
  const void *x, *w;
  void* y;
  float* rstd;  // [rows], kept for the backward pass
  int64_t rows, cols;
  float eps;
  DType dtype;        // of x and y
  DType param_dtype;  // of w: dtype or f32
};
extern Kernel<RmsNormArgs> rms_norm_kernel;

struct RmsNormBackwardArgs {
  const void *dy, *x, *w;
  const float* rstd;
  void* dx;     // null where not needed
  float* part;  // f32 [chunks, cols]: dw of each run of rows; null where not needed
  float* dw;    // f32 [cols]: their sum
  int64_t rows, cols, chunks;
  DType dtype, param_dtype;
};
extern Kernel<RmsNormBackwardArgs> rms_norm_backward_kernel;

}  // namespace deem
