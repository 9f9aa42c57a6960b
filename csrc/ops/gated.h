#pragma once
#include "core/kernel.h"

namespace deem {

enum class Gate : uint8_t { geglu, swiglu };

struct GatedArgs {
  Gate gate;
  const void* x;  // [rows, 2 n]
  void* y;        // [rows, n]
  int64_t rows, n;
  DType dtype;
};
extern Kernel<GatedArgs> gated_kernel;

struct GatedBackwardArgs {
  Gate gate;
  const void *dy, *x;
  void* dx;
  int64_t rows, n;
  DType dtype;
};
extern Kernel<GatedBackwardArgs> gated_backward_kernel;

}  // namespace deem
