// Kernel arguments of softmax and log_softmax: contiguous rows of at least one element.
#pragma once
#include "core/kernel.h"

namespace deem {

struct SoftmaxArgs {
  const void* x;
  void* y;
  int64_t rows, cols;
  bool log;  // the logarithm of the softmax
  DType dtype;
};
extern Kernel<SoftmaxArgs> softmax_kernel;

struct SoftmaxBackwardArgs {
  const void *dy, *y;
  void* dx;
  int64_t rows, cols;
  bool log;
  DType dtype;
};
extern Kernel<SoftmaxBackwardArgs> softmax_backward_kernel;

}  // namespace deem
