// Gradients of attention on tensor cores, bf16 and f16. One kernel takes a tile of queries through all keys (dq), another a tile
// of keys through all queries that see it (dk, dv), so that every sum is one thread's own, in one order.
#pragma once
#include "cuda/kernels/attention_tile.cuh"

namespace deem::cuda {

// What both kernels need besides the arguments.
struct BackwardExtra {
  float* delta;         // [B, H, Tq]: dy . y of each query
  const float* unseen;  // [B, Hkv, dim]: what queries that see nothing give to every value
  bool vectors;         // all operands have 16-byte aligned rows
  bool vectors_out;     // and all results
};

template <int D>
constexpr size_t kBackwardQueriesShared = size_t(4) * kTile* kLd<D> * 2;

// Leaves delta of tiles that see one tile of keys as the sum of the very numbers it is taken from: gradients that are zero in
// exact arithmetic (of key biases) then stay at the level of rounding. The kernel for keys, which runs later, takes it from there.
template <class T, int D>
__global__ void __launch_bounds__(128, 2) attention_dq_mma(AttentionBackwardArgs a, int tiles, BackwardExtra extra) {
  DEEM_SHARED_DYN(T, shared);
  constexpr int kSlot = kTile * kLd<D>, N = kTile / 8;
  T *queries = shared, *cotangents = queries + kSlot, *values = cotangents + kSlot, *keys = values + kSlot;
  const AttentionProblem& p = a.p;
  const int64_t head = blockIdx.x / tiles, b = head / p.heads, h = head % p.heads, kv = h / (p.heads / p.kv_heads);
  const int first = (tiles - 1 - int(blockIdx.x % tiles)) * kTile;
  const int last = first + kTile < p.tq ? first + kTile : int(p.tq), dim = int(p.dim);
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16, column = lane % 4 * 2;
  const Plan plan = plan_of(p, b);
  const int end = plan.seen[last - 1], fewest = plan.seen[first];
  const bool whole = end <= kTile;
  if (!a.dq && !whole) return;
  Rows<T> k = kept_of<T>(p.k, b, kv, plan), v = kept_of<T>(p.v, b, kv, plan);
  k.end = v.end = end;

  int seen[2];
  float top[2], inverse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = first + row + lane / 4 + r * 8;
    const int64_t at = head * p.tq + i;
    seen[r] = i < last ? plan.seen[i] : 0;
    top[r] = i < last ? a.norms[2 * at] * kLog2e : 0.0f;
    inverse[r] = i < last ? a.norms[2 * at + 1] : 0.0f;
    delta[r] = i < last && !whole ? extra.delta[at] : 0.0f;
  }
  float out[D / 8][4] = {};
  if (end > 0) {
    load_tile<D, kTile, 128>(queries, head_of<T>(p.q, b, h, p.tq), first, dim, extra.vectors);
    load_tile<D, kTile, 128>(cotangents, head_of<T>(a.dy, b, h, p.tq, p.heads, p.dim), first, dim, extra.vectors);
    load_tile<D, kTile, 128>(values, v, 0, dim, extra.vectors);
    cp_async_commit();
    load_tile<D, kTile, 128>(keys, k, 0, dim, extra.vectors);
    cp_async_commit();
  }
  const float scale = p.scale * kLog2e;
  for (int t = 0; t < end; t += kTile) {
    cp_async_wait<1>();
    __syncthreads();
    float ds[N][4] = {}, s[N][4] = {};
    multiply_rows<D>(ds, cotangents, row, values);
    cp_async_wait<0>();
    __syncthreads();  // keys are there, and the values done with
    if (t + kTile < end) load_tile<D, kTile, 128>(values, v, t + kTile, dim, extra.vectors);
    cp_async_commit();
    multiply_rows<D>(s, queries, row, keys);
    const bool masked = t + kTile > fewest;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float e = exp2_approx(s[n][i] * scale - top[i / 2]) * inverse[i / 2];
        s[n][i] = masked && t + n * 8 + column + i % 2 >= seen[i / 2] ? 0.0f : e;
      }
    if (whole) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N; n++) sum += s[n][r * 2] * ds[n][r * 2] + s[n][r * 2 + 1] * ds[n][r * 2 + 1];
        delta[r] = warp_sum<4>(sum);
        const int i = first + row + lane / 4 + r * 8;
        if (lane % 4 == 0 && i < last) extra.delta[head * p.tq + i] = delta[r];
      }
      if (!a.dq) break;
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[n][i] *= ds[n][i] - delta[i / 2];
    const Weights<N, T> weights(s);
    multiply_weights<D>(out, weights, keys);
    __syncthreads();
    if (t + kTile < end) load_tile<D, kTile, 128>(keys, k, t + kTile, dim, extra.vectors);
    cp_async_commit();
  }
  if (end > 0) cp_async_wait<0>();
  if (!a.dq) return;

#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) out[n][i] *= p.scale;
  if (a.q_batches == p.batches) {
    __syncthreads();
    stage_rows<D>(queries, out);
    write_rows<D>(queries, dim, extra.vectors_out, [&](int r) {
      const int64_t i = first + row + r;
      return i < last ? static_cast<T*>(a.dq) + ((b * p.tq + i) * p.heads + h) * dim : nullptr;
    });
    return;
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int64_t i = first + row + lane / 4 + r * 8;
    if (i >= last) continue;
    float* y = a.dq_sum + ((b * p.tq + i) * p.heads + h) * dim;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int c = 0; c < 2; c++)
        if (n * 8 + column + c < dim) y[n * 8 + column + c] = out[n][r * 2 + c];
  }
}

// Queries of a step of the kernel for keys: with more the sums of a warp would not fit into registers.
template <int D>
constexpr int kBackwardQueries = D <= 64    ? 64
                                 : D <= 128 ? 32
                                            : 16;
template <int D>
constexpr size_t kBackwardKeysShared = size_t(2 * kTile + 4 * kBackwardQueries<D>) * kLd<D> * 2;

// A block takes the kept keys first .. first + 63, and writes besides the gradients of those keys that are not kept and whose
// positions are first .. first + 63. Scores are held transposed, [key][query].
template <class T, int D>
__global__ void __launch_bounds__(128, 2) attention_dkv_mma(AttentionBackwardArgs a, int tiles, BackwardExtra extra) {
  constexpr int Q = kBackwardQueries<D>, N = Q / 8, kSlot = Q * kLd<D>;
  DEEM_SHARED_DYN(T, shared);
  DEEM_SHARED(float2, norm_ring, 2 * Q);
  DEEM_SHARED(float, delta_ring, 2 * Q);
  DEEM_SHARED(int, limit_ring, 2 * Q);
  float2* const norms = norm_ring;
  float* const deltas = delta_ring;
  int* const limits = limit_ring;
  T *keys = shared, *values = keys + kTile * kLd<D>, *ring = values + kTile * kLd<D>;
  const AttentionProblem& p = a.p;
  const int64_t pair = blockIdx.x / tiles, b = pair / p.kv_heads, kv = pair % p.kv_heads, group = p.heads / p.kv_heads;
  const int first = int(blockIdx.x % tiles) * kTile, dim = int(p.dim);  // early keys are seen by most: first
  const int tid = threadIdx.x, lane = tid % 32, row = tid / 32 * 16, column = lane % 4 * 2;
  const Plan plan = plan_of(p, b);
  const float* unseen = extra.unseen + pair * dim;

  if (plan.count < p.tk)
    for (int r = tid / 32; r < kTile && first + r < p.tk; r += 4) {
      if (is_kept(plan, first + r)) continue;
      const int64_t at = ((b * p.tk + first + r) * p.kv_heads + kv) * dim;
      for (int c = lane; c < dim; c += 32) {
        if (a.dk) static_cast<T*>(a.dk)[at + c] = from_float<T>(0.0f);
        if (a.dv) static_cast<T*>(a.dv)[at + c] = from_float<T>(unseen[c]);
      }
    }
  if (first >= plan.count) return;

  const int begin = first_to_see(plan, int(p.tq), first) / Q * Q;
  const int panels = (int(p.tq) - begin + Q - 1) / Q;  // none where no query sees the first key
  const int steps = int(group) * panels;
  const Rows<T> k = kept_of<T>(p.k, b, kv, plan), v = kept_of<T>(p.v, b, kv, plan);
  auto load = [=](int step) {
    if (step < steps) {
      const int64_t h = kv * group + step / panels, at = (b * p.heads + h) * p.tq;
      const int q0 = begin + step % panels * Q, slot = step % 2;
      T* to = ring + slot * 2 * kSlot;
      load_tile<D, Q, 128>(to, head_of<T>(p.q, b, h, p.tq), q0, dim, extra.vectors);
      load_tile<D, Q, 128>(to + kSlot, head_of<T>(a.dy, b, h, p.tq, p.heads, p.dim), q0, dim, extra.vectors);
      if (tid < Q) {
        const bool valid = q0 + tid < p.tq;
        const int64_t i = valid ? q0 + tid : 0;
        cp_async_8(norms + slot * Q + tid, a.norms + 2 * (at + i), valid);
        cp_async_4(deltas + slot * Q + tid, extra.delta + at + i, valid);
        cp_async_4(limits + slot * Q + tid, plan.seen + i, valid);
      }
    }
    cp_async_commit();
  };
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  if (steps > 0) {
    load_tile<D, kTile, 128>(keys, k, first, dim, extra.vectors);
    load_tile<D, kTile, 128>(values, v, first, dim, extra.vectors);
    load(0);
  }
  const float scale = p.scale * kLog2e;
  for (int step = 0; step < steps; step++) {
    cp_async_wait<0>();
    __syncthreads();
    load(step + 1);
    const int slot = step % 2;
    const T *queries = ring + slot * 2 * kSlot, *cotangents = queries + kSlot;
    float s[N][4] = {}, ds[N][4] = {};
    multiply_rows<D>(s, keys, row, queries);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const int i = slot * Q + n * 8 + column + c, limit = limits[i] - first - row - lane / 4;
        const float2 norm = norms[i];
#pragma unroll
        for (int r = 0; r < 2; r++) {
          float& e = s[n][r * 2 + c];
          e = r * 8 < limit ? exp2_approx(e * scale - norm.x * kLog2e) * norm.y : 0.0f;
        }
      }
    multiply_weights<D>(dv, Weights<N, T>(s), cotangents);
    multiply_rows<D>(ds, values, row, cotangents);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[n][i] *= ds[n][i] - deltas[slot * Q + n * 8 + column + i % 2];
    multiply_weights<D>(dk, Weights<N, T>(s), queries);
  }
  if (steps > 0) cp_async_wait<0>();

#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int c = n * 8 + column + i % 2;
      dk[n][i] *= p.scale;
      dv[n][i] += c < dim ? unseen[c] : 0.0f;
    }
  auto position = [&](void* to, int r) {
    const int t = first + row + r;
    return t < plan.count ? static_cast<T*>(to) + ((b * p.tk + plan.order[t]) * p.kv_heads + kv) * dim : nullptr;
  };
  __syncthreads();
  stage_rows<D>(keys, dk);
  stage_rows<D>(values, dv);
  if (a.dk) write_rows<D>(keys, dim, extra.vectors_out, [&](int r) { return position(a.dk, r); });
  if (a.dv) write_rows<D>(values, dim, extra.vectors_out, [&](int r) { return position(a.dv, r); });
}

}  // namespace deem::cuda
