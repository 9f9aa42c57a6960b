// Kernel arguments of attention. Kernels assume what the front end checked; only the last axis of q, k and v is contiguous.
#pragma once
#include "core/kernel.h"

namespace deem {

constexpr int64_t kAttentionPanel = 32;   // queries whose scores are held at a time
constexpr int64_t kAttentionKeys = 64;    // keys of a block; results depend on this number only, not on chunks
constexpr int64_t kAttentionChunk = 256;  // most queries (forward) or keys (backward) that share packed operands

struct HeadRows {  // [B, T, H, D] with strides in elements; 0 where an axis is broadcast
  const void* data;
  int64_t batch, row, head;
};

struct AttentionProblem {
  HeadRows q, k, v;
  // [B or 1, 1 + Tk + Tq]: how many keys are kept, their positions, and how many of them each query sees. A query sees a
  // prefix of the kept keys, and later queries see no fewer, so padding and causality are the same thing to the kernel.
  const int32_t* plan;
  int64_t plan_stride;
  int64_t batches, heads, kv_heads, tq, tk, dim;
  float scale;
  DType dtype;
  int64_t chunk;    // queries or keys of a task, a multiple of a panel and of a block
  int64_t workers;  // tasks that run side by side, each with its own scratch
  float* scratch;
  int64_t scratch_stride;
};

struct AttentionArgs {
  AttentionProblem p;
  void* y;  // [B, Tq, H, D]
  // [B, H, Tq, 2]: the largest score of a query and 1 / sum of exp(score - largest); null where no gradient is wanted. Kept
  // apart, as the logarithm of the sum would cost the probabilities a common rounding error.
  float* norms;
};
extern Kernel<AttentionArgs> attention_kernel;

struct AttentionBackwardArgs {
  AttentionProblem p;
  const void *dy, *y;  // [B, Tq, H, D]
  const float* norms;
  float* dq_sum;  // f32 [B, Tq, H, D], null where dq is not needed
  void* dq;       // [Bq, Tq, H, D]: the sums over the batch where q was broadcast, rounded; may be dq_sum itself
  int64_t q_batches;
  void *dk, *dv;  // [B, Tk, Hkv, D], null where not needed
};
extern Kernel<AttentionBackwardArgs> attention_backward_kernel;

}  // namespace deem
