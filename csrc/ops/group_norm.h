// Kernel arguments of group_norm. Positions are cut into blocks of a size that depends on the shape alone; sums of a
// block are combined in order, so results do not depend on the thread count.
#pragma once
#include "core/kernel.h"

namespace deem {

struct GroupNormArgs {
  const void *x, *w, *b;
  void* y;
  float *mean, *rstd;                             // [n, groups], kept for the backward pass
  float *block_mean, *block_m2;                   // [n, blocks, channels]: mean and sum of squared deviations from it
  int64_t n, positions, channels, groups, block;  // block: positions per block
  float eps;
  bool silu;
  DType dtype;        // of x and y
  DType param_dtype;  // of w and b: dtype or f32
};
extern Kernel<GroupNormArgs> group_norm_kernel;

struct GroupNormBackwardArgs {
  const void *dy, *x, *w, *b;
  const float *mean, *rstd;
  void* dx;                    // null where not needed
  float *dw, *db;              // f32 [channels], null where not needed
  float *block_dw, *block_db;  // [n, blocks, channels]: sum of g * xhat and of g, g = dy (times the derivative of silu)
  float *group_dw, *group_db;  // [n, groups]: means over the group of w * g * xhat and of w * g
  int64_t n, positions, channels, groups, block;
  bool silu;
  DType dtype, param_dtype;
};
extern Kernel<GroupNormBackwardArgs> group_norm_backward_kernel;

}  // namespace deem
