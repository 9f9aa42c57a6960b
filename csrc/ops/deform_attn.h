// Kernel arguments of ms_deform_attn, and what both deformable attentions share. Kernels assume what the front end
// checked.
#pragma once
#include <vector>

#include "core/kernel.h"

namespace deem {

struct DeformLevel {
  int32_t height, width;
  int32_t start;  // its first row among the rows of one image
  float scale;    // MMFS: pixels of an offset of 1
};

// Scratch memory, one slot a thread of the CPU. `packed`: the rows of one head are first gathered into the slot, which pays when
// queries read them often.
struct DeformScratch {
  float* data;
  int64_t slots, slot_size;  // slot_size in floats
};

struct DeformAttnArgs {
  const void* value;                 // [b, rows, heads, dim]
  const float *locations, *weights;  // [b, q, heads, levels, points, 2], [b, q, heads, levels, points]
  void* y;                           // [b, q, heads, dim]
  const DeformLevel* levels;
  int64_t b, q, heads, dim, rows, n_levels, points;
  bool packed;
  DeformScratch scratch;
  DType dtype;  // of value and y
};
extern Kernel<DeformAttnArgs> ms_deform_attn_kernel;

struct DeformAttnBackwardArgs {
  const void *dy, *value;
  const float *locations, *weights;
  void* dvalue;  // the gradients are null where not needed
  float *dlocations, *dweights;
  const DeformLevel* levels;
  int64_t b, q, heads, dim, rows, n_levels, points;
  DeformScratch scratch;
  DType dtype;
};
extern Kernel<DeformAttnBackwardArgs> ms_deform_attn_backward_kernel;

// Floats of a slot: the samples of one image, their corners or gradients, sums, and `packed` of a head's values (twice in
// the backward pass).
DEEM_INLINE int64_t deform_slot_size(int64_t samples, int64_t dim, int64_t packed, bool backward) {
  return (samples * 12 + 2 * dim + packed * (backward ? 2 : 1) + 63) / 16 * 16;
}

// The memory of a scratch. Other devices than the CPU get none: their kernels know better how many run at a time.
class DeformSlots : public DeformScratch {
 public:
  DeformSlots(int64_t slots, int64_t slot_size, Device device);

 private:
  Tensor memory_;
};

// Checks level shapes against the count of rows, throws ShapeError naming `op`.
std::vector<DeformLevel> deform_levels(const char* op, const std::vector<std::pair<int64_t, int64_t>>& shapes,
                                       int64_t rows);

}  // namespace deem
