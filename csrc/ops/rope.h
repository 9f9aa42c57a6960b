// Kernel arguments of rope.
#pragma once
#include "core/kernel.h"

namespace deem {

struct RopeTableArgs {
  const int64_t* positions;  // [rows], below 2^31 in size
  const float* frequencies;  // [half]
  float* table;              // [rows, 2, half]: cosines, then sines, of float(position) * frequency
  int64_t rows, half;
};
extern Kernel<RopeTableArgs> rope_table_kernel;

struct RopeArgs {
  const void* x;  // [batches, tokens, heads, 2 * half], strides in elements, last axis contiguous
  int64_t batch, row, head;
  const float* table;  // of RopeTableArgs, for one batch (table_batch 0) or all
  int64_t table_batch;
  void* y;  // contiguous
  int64_t batches, tokens, heads, half;
  float sign;  // of the angle: 1 rotates, -1 rotates back
  DType dtype;
};
extern Kernel<RopeArgs> rope_kernel;

}  // namespace deem
