// Gradients of attention without tensor cores (see attention_simt.cuh); the same two kernels as attention_backward_mma.cuh, each
// block with a slice of the columns of its results.
#pragma once
#include "cuda/kernels/attention_backward_mma.cuh"
#include "cuda/kernels/attention_simt.cuh"

namespace deem::cuda {

template <class T, int COLUMNS>
__global__ void __launch_bounds__(kSimtThreads, 1)
    attention_dq_simt(AttentionBackwardArgs a, int tiles, int slices, BackwardExtra extra) {
  constexpr int N = COLUMNS / 16;
  DEEM_SHARED(float, weights, kTile* kSimtLd);
  DEEM_SHARED(float, stage, kSimtStage<COLUMNS>);
  const AttentionProblem& p = a.p;
  const int64_t head = blockIdx.x / tiles / slices, b = head / p.heads, h = head % p.heads,
                kv = h / (p.heads / p.kv_heads);
  const int from = blockIdx.x / tiles % slices * COLUMNS;
  const int first = (tiles - 1 - int(blockIdx.x % tiles)) * kTile;
  const int last = first + kTile < p.tq ? first + kTile : int(p.tq), dim = int(p.dim);
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  const Plan plan = plan_of(p, b);
  const int end = plan.seen[last - 1];
  const bool whole = end <= kTile;
  if (!a.dq && !whole) return;
  const Rows<T> q = head_of<T>(p.q, b, h, p.tq), dy = head_of<T>(a.dy, b, h, p.tq, p.heads, p.dim);
  Rows<T> k = kept_of<T>(p.k, b, kv, plan), v = kept_of<T>(p.v, b, kv, plan);
  k.end = v.end = end;

  int seen[4];
  float top[4], inverse[4], delta[4], out[4][N] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int64_t query = first + row + i, at = head * p.tq + query;
    const bool valid = query < last;
    seen[i] = valid ? plan.seen[query] : 0;
    top[i] = valid ? a.norms[2 * at] : 0.0f;
    inverse[i] = valid ? a.norms[2 * at + 1] : 0.0f;
    delta[i] = valid && !whole ? extra.delta[at] : 0.0f;
  }
  for (int t = 0; t < end; t += kTile) {
    float s[4][4], ds[4][4];
    simt_scores(ds, dy, first, v, t, dim, stage);
    simt_scores(s, q, first, k, t, dim, stage);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        s[i][j] = t + column + j < seen[i] ? expf(s[i][j] * p.scale - top[i]) * inverse[i] : 0.0f;
        sum += s[i][j] * ds[i][j];
      }
      if (whole) {
        delta[i] = warp_sum<16>(sum);
        if (from == 0 && column == 0 && first + row + i < last) extra.delta[head * p.tq + first + row + i] = delta[i];
      }
#pragma unroll
      for (int j = 0; j < 4; j++) s[i][j] *= (ds[i][j] - delta[i]) * p.scale;
    }
    simt_weights(weights, s);
    simt_accumulate(out, weights, k, t, from, dim, stage);
  }
  if (!a.dq) return;
  const bool summed = a.q_batches != p.batches;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int64_t at = ((b * p.tq + first + row + i) * p.heads + h) * dim;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const int c = from + threadIdx.x % 16 + 16 * n;
      if (first + row + i >= last || c >= dim) continue;
      if (summed) a.dq_sum[at + c] = out[i][n];
      else static_cast<T*>(a.dq)[at + c] = from_float<T>(out[i][n]);
    }
  }
}

template <class T, int COLUMNS>
__global__ void __launch_bounds__(kSimtThreads, 1)
    attention_dkv_simt(AttentionBackwardArgs a, int tiles, int slices, BackwardExtra extra) {
  constexpr int N = COLUMNS / 16;
  DEEM_SHARED(float, weights, kTile* kSimtLd);
  DEEM_SHARED(float, stage, kSimtStage<COLUMNS>);
  const AttentionProblem& p = a.p;
  const int64_t pair = blockIdx.x / tiles / slices, b = pair / p.kv_heads, kv = pair % p.kv_heads,
                group = p.heads / p.kv_heads;
  const int from = blockIdx.x / tiles % slices * COLUMNS, first = int(blockIdx.x % tiles) * kTile, dim = int(p.dim);
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  const Plan plan = plan_of(p, b);
  const float* unseen = extra.unseen + pair * dim;

  if (plan.count < p.tk)
    for (int i = threadIdx.x; i < kTile * COLUMNS; i += kSimtThreads) {
      const int t = first + i / COLUMNS, c = from + i % COLUMNS;
      if (t >= p.tk || c >= dim || is_kept(plan, t)) continue;
      const int64_t at = ((b * p.tk + t) * p.kv_heads + kv) * dim + c;
      if (a.dk) static_cast<T*>(a.dk)[at] = from_float<T>(0.0f);
      if (a.dv) static_cast<T*>(a.dv)[at] = from_float<T>(unseen[c]);
    }
  if (first >= plan.count) return;

  const int begin = first_to_see(plan, int(p.tq), first) / kTile * kTile;
  const Rows<T> k = kept_of<T>(p.k, b, kv, plan), v = kept_of<T>(p.v, b, kv, plan);
  float dk[4][N] = {}, dv[4][N] = {};
  for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
    const Rows<T> q = head_of<T>(p.q, b, h, p.tq), dy = head_of<T>(a.dy, b, h, p.tq, p.heads, p.dim);
    for (int q0 = begin; q0 < p.tq; q0 += kTile) {
      float s[4][4], ds[4][4];
      simt_scores(s, k, first, q, q0, dim, stage);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const bool valid = q0 + column + j < p.tq;
        const int64_t query = valid ? q0 + column + j : 0, at = (b * p.heads + h) * p.tq + query;
        const float top = a.norms[2 * at], inverse = a.norms[2 * at + 1];
        const int seen = valid ? plan.seen[query] : 0;
#pragma unroll
        for (int i = 0; i < 4; i++) s[i][j] = first + row + i < seen ? expf(s[i][j] * p.scale - top) * inverse : 0.0f;
      }
      simt_weights(weights, s);
      simt_accumulate(dv, weights, dy, q0, from, dim, stage);
      simt_scores(ds, v, first, dy, q0, dim, stage);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int64_t query = q0 + column + j < p.tq ? q0 + column + j : 0;
        const float delta = extra.delta[(b * p.heads + h) * p.tq + query];
#pragma unroll
        for (int i = 0; i < 4; i++) s[i][j] *= (ds[i][j] - delta) * p.scale;
      }
      simt_weights(weights, s);
      simt_accumulate(dk, weights, q, q0, from, dim, stage);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (first + row + i >= plan.count) continue;
    const int64_t at = ((b * p.tk + plan.order[first + row + i]) * p.kv_heads + kv) * dim;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const int c = from + threadIdx.x % 16 + 16 * n;
      if (c >= dim) continue;
      if (a.dk) static_cast<T*>(a.dk)[at + c] = from_float<T>(dk[i][n]);
      if (a.dv) static_cast<T*>(a.dv)[at + c] = from_float<T>(dv[i][n] + unseen[c]);
    }
  }
}

}  // namespace deem::cuda
