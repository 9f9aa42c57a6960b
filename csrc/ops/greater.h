#pragma once
#include "core/kernel.h"

namespace deem {

struct GreaterArgs {
  const void* x;
  uint8_t* y;
  int64_t n;
  float limit;
  DType dtype;
};
extern Kernel<GreaterArgs> greater_kernel;

}  // namespace deem
