// Kernel arguments of layer_norm; kernels assume what the front end checked: contiguous rows, matching dtypes.
#pragma once
#include "core/kernel.h"

namespace deem {

struct LayerNormArgs {
  const void *x, *w, *b;
  void* y;
  float *mean, *rstd;  // [rows], kept for the backward pass
  int64_t rows, cols;
  float eps;
  DType dtype;  // of x and y; w and b are of param_dtype
  DType param_dtype;
};
extern Kernel<LayerNormArgs> layer_norm_kernel;

struct LayerNormBackwardArgs {
  const void *dy, *x, *w;
  const float *mean, *rstd;
  void* dx;        // null where not needed
  float *dw, *db;  // f32 [cols], null where not needed
  int64_t rows, cols;
  DType dtype, param_dtype;
};
extern Kernel<LayerNormBackwardArgs> layer_norm_backward_kernel;

}  // namespace deem
