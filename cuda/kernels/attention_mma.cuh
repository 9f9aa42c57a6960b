// Attention on tensor cores, bf16 and f16: a block takes 64 queries of a head, a warp 16 of them. Tiles of keys and of values
// follow each other through a ring in shared memory, so that the next ones arrive while these are multiplied.
#pragma once
#include "cuda/kernels/attention_tile.cuh"

namespace deem::cuda {

// Two blocks of a multiprocessor with 100 KB have room beside each other.
template <int D>
constexpr int kRing = D <= 64   ? 4
                      : D <= 96 ? 3
                                : 2;
template <int D>
constexpr size_t kAttentionShared = size_t(kRing<D>) * kTile* kLd<D> * 2;

// Of this thread's two queries: running maximum and this thread's part of the sum, in units of log2.
struct Softmax {
  float top[2] = {kNever, kNever}, total[2] = {0, 0};

  // Scores become 2^(score - maximum); out is brought to the new maximum. Key `column` of the tile is seen below limit[row].
  template <int N, int M>
  DEEM_DEVICE void step(float (&s)[N][4], float (&out)[M][4], float scale, bool masked, const int (&limit)[2]) {
    const int column = threadIdx.x % 4 * 2;
    float best[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        s[n][i] *= scale;
        if (masked && n * 8 + column + i % 2 >= limit[i / 2]) s[n][i] = kNever;
        best[i / 2] = fmaxf(best[i / 2], s[n][i]);
      }
    float base[2], factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      best[r] = warp_max<4>(best[r]);
      base[r] = best[r] == kNever ? 0.0f : best[r];
      factor[r] = exp2_approx(top[r] - base[r]);
      top[r] = best[r];
      total[r] *= factor[r];
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) total[i / 2] += s[n][i] = exp2_approx(s[n][i] - base[i / 2]);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) out[m][i] *= factor[i / 2];
  }
};

// Blocks that ptxas is to leave room for; left to itself it spills a few bytes to fit a third one, for which there is no shared memory.
template <int D>
constexpr int kBlocksAtOnce = D == 96 ? 2 : 1;

template <class T, int D>
__global__ void __launch_bounds__(128, kBlocksAtOnce<D>)
    attention_mma(AttentionArgs a, int tiles, bool vectors_in, bool vectors_out) {
  DEEM_SHARED_DYN(T, ring);
  constexpr int kSlot = kTile * kLd<D>, kSlots = kRing<D>;
  const AttentionProblem& p = a.p;
  const int64_t head = blockIdx.x / tiles, b = head / p.heads, h = head % p.heads, kv = h / (p.heads / p.kv_heads);
  const int first = (tiles - 1 - int(blockIdx.x % tiles)) * kTile;  // late queries see most: first
  const int last = first + kTile < p.tq ? first + kTile : int(p.tq), dim = int(p.dim);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  const Plan plan = plan_of(p, b);
  const int end = plan.seen[last - 1], fewest = plan.seen[first];
  const Rows<T> q = head_of<T>(p.q, b, h, p.tq);
  const Rows<T> k = kept_of<T>(p.k, b, kv, plan), v = kept_of<T>(p.v, b, kv, plan);

  int seen[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = first + row + lane / 4 + r * 8;
    seen[r] = i < last ? plan.seen[i] : 0;
  }
  Softmax softmax;
  float out[D / 8][4] = {};

  if (end > 0) {
    const int steps = (end + kTile - 1) / kTile * 2;  // keys, values, keys, values, ...
    auto load = [=](int step) {
      if (step < steps) {
        const Rows<T> x{step % 2 ? v.data : k.data, step % 2 ? v.stride : k.stride, k.order, end};
        load_tile<D, kTile, 128>(ring + step % kSlots * kSlot, x, step / 2 * kTile, dim, vectors_in);
      }
      cp_async_commit();
    };
    // Queries wait in the last slot until they are in registers.
    T* queries = ring + (kSlots - 1) * kSlot;
    load_tile<D, kTile, 128>(queries, q, first, dim, vectors_in);
    cp_async_commit();
    for (int step = 0; step < kSlots - 1; step++) load(step);
    cp_async_wait<kSlots - 1>();
    __syncthreads();
    uint32_t left[D / 16][4];
#pragma unroll
    for (int c = 0; c < D / 16; c++) load_left<D>(left[c], queries, row, c * 16);

    // The tile of a step is there, and the slot of the step before it is free.
    auto next = [=](int step) {
      cp_async_wait<kSlots - 2>();
      __syncthreads();
      load(step + kSlots - 1);
      return ring + step % kSlots * kSlot;
    };
    const float scale = p.scale * kLog2e;
    for (int step = 0; step < steps; step += 2) {
      const T* keys = next(step);
      float s[kTile / 8][4] = {};
#pragma unroll
      for (int c = 0; c < D / 16; c++)
#pragma unroll
        for (int n = 0; n < kTile / 8; n += 2) {
          uint32_t right[2][2];
          load_right<D>(right, keys, n * 8, c * 16);
          multiply_add<T>(s[n], left[c], right[0]);
          multiply_add<T>(s[n + 1], left[c], right[1]);
        }
      const int t = step / 2 * kTile, limit[2] = {seen[0] - t, seen[1] - t};
      softmax.step(s, out, scale, t + kTile > fewest, limit);
      const Weights<kTile / 8, T> weights(s);
      multiply_weights<D>(out, weights, next(step + 1));
    }
    cp_async_wait<0>();
  }

  float* mean = reinterpret_cast<float*>(ring + kSlot);
  __syncthreads();
  if (fewest == 0) mean_of_values(head_of<T>(p.v, b, kv, p.tk), int(p.tk), 0, D, dim, mean, mean);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float total = warp_sum<4>(softmax.total[r]), inverse = seen[r] ? 1.0f / total : 0.0f;
    const int i = first + row + lane / 4 + r * 8;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        float& y = out[n][r * 2 + c];
        y = seen[r] || fewest > 0 ? y * inverse : mean[n * 8 + lane % 4 * 2 + c];
      }
    if (a.norms && lane % 4 == 0 && i < last) {
      float* norm = a.norms + 2 * (head * p.tq + i);
      norm[0] = seen[r] ? softmax.top[r] * kLn2 : 0.0f;
      norm[1] = inverse;
    }
  }
  stage_rows<D>(ring, out);
  write_rows<D>(ring, dim, vectors_out, [&](int r) {
    const int64_t i = first + row + r;
    return i < last ? static_cast<T*>(a.y) + ((b * p.tq + i) * p.heads + h) * dim : nullptr;
  });
}

}  // namespace deem::cuda
