// Kernel arguments of the AdamW update. All parameters are one concatenated run of elements, cut into pieces of equal
// length, so that a thousand small tensors cost one parallel region and share the threads evenly.
#pragma once
#include "core/kernel.h"

namespace deem {

struct AdamWSegment {  // one parameter
  void* parameter;
  const void* gradient;
  float *exp_avg, *exp_avg_sq;
  float* master;       // takes the update in the parameter's place, which gets its rounded values; may be null
  int64_t begin, end;  // in the concatenated run
  float decay;         // 1 - lr * weight_decay
  float step_size;     // lr / (1 - beta1^t)
  float denominator;   // 1 / sqrt(1 - beta2^t)
  DType dtype, gradient_dtype;
};

struct AdamWArgs {
  const AdamWSegment* segments;  // without gaps; list and squares on the device of the parameters
  int64_t count, total;          // segments, elements
  int64_t piece;                 // elements of a piece
  double* squares;               // [pieces]: sums of squared gradients
  float beta2, rest1, rest2;     // rest: 1 - beta, which f32 could not subtract exactly
  float eps;
  float clip;  // factor of the gradients
};
extern Kernel<AdamWArgs> adamw_squares_kernel;
extern Kernel<AdamWArgs> adamw_update_kernel;

}  // namespace deem
