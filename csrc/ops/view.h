// Kernel arguments of the copying operations; elements are moved by width, whatever their type.
#pragma once
#include "core/kernel.h"
#include "ops/strided.h"

namespace deem {

struct CopyArgs {
  void* y;
  const void* x;
  Strided<2> axes;  // of y, of x
  int64_t width;    // bytes of an element: 1, 2, 4 or 8
};
extern Kernel<CopyArgs> copy_kernel;

struct GatherRowsArgs {
  const void* x;
  const int64_t* index;  // 0..rows of x - 1, or -1 for a zero row
  void* y;
  int64_t count, row_bytes;
};
extern Kernel<GatherRowsArgs> gather_rows_kernel;

// Fills `to` (any strides) with the elements of x, which has its shape and dtype. Not recorded.
void copy_into(const Tensor& to, const Tensor& x);

}  // namespace deem
