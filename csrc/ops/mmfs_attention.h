// Kernel arguments of mmfs_attention; kernels assume what the front end checked. A row of logits has one entry more a
// level than points: the ignore slot, whose logit is a constant.
#pragma once
#include "ops/deform_attn.h"

namespace deem {

struct MmfsShape {
  int64_t b, images, q, heads, dim, rows, n_levels, points;
  int64_t relative_rows;   // of the tables
  int64_t reference_rows;  // q or 1
  const DeformLevel* levels;
};

struct MmfsArgs {
  const void* value;  // [b, images, rows, heads, dim]
  const float *offsets, *offset_table, *logits, *logit_table, *reference, *ignore_token;
  const int64_t* relative;  // [b, images, q]
  void* y;                  // [b, q, heads, dim]
  MmfsShape shape;
  bool packed;
  DeformScratch scratch;
  DType dtype;  // of value and y
};
extern Kernel<MmfsArgs> mmfs_attention_kernel;

struct MmfsBackwardArgs {
  const void *dy, *value;
  const float *offsets, *offset_table, *logits, *logit_table, *reference, *ignore_token;
  const int64_t* relative;
  void* dvalue;  // null where not needed; the rest is always written
  float *doffsets, *dlogits, *doffset_table, *dlogit_table, *dreference, *dignore_token;
  // What one batch row (and head) adds to a gradient that all rows share: [b, relative_rows, ...], [b, heads, q, 2],
  // [b, heads * dim].
  float *offset_table_parts, *logit_table_parts, *reference_parts, *ignore_parts;
  MmfsShape shape;
  DeformScratch scratch;
  DType dtype;
};
extern Kernel<MmfsBackwardArgs> mmfs_attention_backward_kernel;

// Floats of a slot: probabilities (and their gradients), lists of images, and what deform_attn uses.
DEEM_INLINE int64_t mmfs_slot_size(const MmfsShape& s, bool packed, bool backward) {
  int64_t width = s.n_levels * (s.points + 1);
  return deform_slot_size(width, s.dim, packed ? s.images * s.rows * s.dim : 0, backward) +
         (s.images * (2 * width + 3) + 2 * s.points + 63) / 16 * 16;
}

}  // namespace deem
