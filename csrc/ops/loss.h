// Kernel arguments of cross_entropy: contiguous logits, labels in 0..cols - 1 or ignore_index.
#pragma once
#include "core/kernel.h"

namespace deem {

struct CrossEntropyArgs {
  const void* logits;
  const int64_t* labels;
  float* lse;   // [rows] logarithm of the sum of exp(logits), kept for the backward pass; 0 where ignored
  float* loss;  // [rows]; 0 where ignored
  int64_t rows, cols, ignore_index;
  DType dtype;
};
extern Kernel<CrossEntropyArgs> cross_entropy_kernel;

struct CrossEntropyBackwardArgs {
  const void* logits;
  const int64_t* labels;
  const float* lse;
  void* dlogits;
  const float* dy;  // the gradient of the mean; each kept row has float(double(*dy) / kept) of it
  int64_t kept;     // rows that are not ignored
  int64_t rows, cols, ignore_index;
  DType dtype;
};
extern Kernel<CrossEntropyBackwardArgs> cross_entropy_backward_kernel;

}  // namespace deem
