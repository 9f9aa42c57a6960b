// Attention without tensor cores, every product an f32 FMA: of f32, and of head sizes that attention_mma is not made for. 256
// threads work on 64 x 64 scores, a thread on 4 x 4 of them, and on 4 rows of a slice of the result.
#pragma once
#include "cuda/kernels/attention_tile.cuh"

namespace deem::cuda {

constexpr int kSimtThreads = 256;
constexpr int kSimtDepth = 32;      // columns, or summed rows, in shared memory at a time
constexpr int kSimtLd = kTile + 4;  // keeps float4 aligned
constexpr int kSimtSlice = 128;     // columns of a slice where the head is wider than any kernel's

// Floats of the operands of one product at a time; COLUMNS are those of the slice.
template <int COLUMNS>
constexpr int kSimtStage = 2 * kSimtLd > COLUMNS ? kSimtDepth * 2 * kSimtLd : kSimtDepth* COLUMNS;

// to[c][r] = column from + c of row first + r.
template <class T>
DEEM_DEVICE void stage_columns(float* to, const Rows<T>& x, int first, int from, int dim) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kTile * kSimtDepth; i += kSimtThreads) {
    const int r = i / kSimtDepth, c = i % kSimtDepth;
    const bool valid = first + r < x.end && from + c < dim;
    to[c * kSimtLd + r] = valid ? to_float(x.at(first + r)[from + c]) : 0.0f;
  }
}

// s[i][j] = row ty * 4 + i of the tile of a at `ai` . row tx * 4 + j of that of b at `bi`, of thread (ty, tx) = tid / 16, tid % 16.
template <class T>
DEEM_DEVICE void simt_scores(float (&s)[4][4], const Rows<T>& a, int ai, const Rows<T>& b, int bi, int dim,
                             float* stage) {
  float *at = stage, *bt = stage + kSimtDepth * kSimtLd;
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
#pragma unroll
  for (int i = 0; i < 16; i++) s[i / 4][i % 4] = 0;
  for (int from = 0; from < dim; from += kSimtDepth) {
    __syncthreads();
    stage_columns(at, a, ai, from, dim);
    stage_columns(bt, b, bi, from, dim);
    __syncthreads();
    const int depth = dim - from < kSimtDepth ? dim - from : kSimtDepth;
#pragma unroll 4
    for (int c = 0; c < depth; c++) {
      const Vec<float, 4> x = load_vec<4>(at + c * kSimtLd + row), y = load_vec<4>(bt + c * kSimtLd + column);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = fmaf(x[i], y[j], s[i][j]);
    }
  }
}

// Weights for simt_accumulate: w[tx * 4 + j][ty * 4 + i] = s[i][j]. Those of before have to be done with, which any simt_scores in
// between sees to.
DEEM_DEVICE void simt_weights(float* w, const float (&s)[4][4]) {
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
#pragma unroll
  for (int j = 0; j < 4; j++)
    store_vec(w + (column + j) * kSimtLd + row, Vec<float, 4>{s[0][j], s[1][j], s[2][j], s[3][j]});
}

// out[i][n] += over rows r of the tile of x at `first`: w[r][ty * 4 + i] * x[r][from + tx + 16 n].
template <int N, class T>
DEEM_DEVICE void simt_accumulate(float (&out)[4][N], const float* w, const Rows<T>& x, int first, int from, int dim,
                                 float* stage) {
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16;
  for (int part = 0; part < kTile && first + part < x.end; part += kSimtDepth) {
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < kSimtDepth * 16 * N; i += kSimtThreads) {
      const int t = first + part + i / (16 * N), c = from + i % (16 * N);
      stage[i] = t < x.end && c < dim ? to_float(x.at(t)[c]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int r = 0; r < kSimtDepth; r++) {
      const Vec<float, 4> weight = load_vec<4>(w + (part + r) * kSimtLd + row);
#pragma unroll
      for (int n = 0; n < N; n++) {
        const float value = stage[r * 16 * N + column + 16 * n];
#pragma unroll
        for (int i = 0; i < 4; i++) out[i][n] = fmaf(weight[i], value, out[i][n]);
      }
    }
  }
}

template <class T, int COLUMNS>
__global__ void __launch_bounds__(kSimtThreads, 1) attention_simt(AttentionArgs a, int tiles, int slices) {
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
  const int end = plan.seen[last - 1], fewest = plan.seen[first];
  const Rows<T> q = head_of<T>(p.q, b, h, p.tq);
  Rows<T> k = kept_of<T>(p.k, b, kv, plan), v = kept_of<T>(p.v, b, kv, plan);
  k.end = v.end = end;

  int seen[4];
  float top[4], total[4], out[4][N] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    seen[i] = first + row + i < last ? plan.seen[first + row + i] : 0;
    top[i] = kNever, total[i] = 0;
  }
  for (int t = 0; t < end; t += kTile) {
    float s[4][4];
    simt_scores(s, q, first, k, t, dim, stage);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float best = top[i], sum = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        s[i][j] = t + column + j < seen[i] ? s[i][j] * p.scale : kNever;
        best = fmaxf(best, s[i][j]);
      }
      best = warp_max<16>(best);
      const float base = best == kNever ? 0.0f : best, factor = expf(top[i] - base);
#pragma unroll
      for (int j = 0; j < 4; j++) sum += s[i][j] = expf(s[i][j] - base);
      total[i] = total[i] * factor + sum;
      top[i] = best;
#pragma unroll
      for (int n = 0; n < N; n++) out[i][n] *= factor;
    }
    simt_weights(weights, s);
    simt_accumulate(out, weights, v, t, from, dim, stage);
  }

  __syncthreads();
  if (fewest == 0) mean_of_values(head_of<T>(p.v, b, kv, p.tk), int(p.tk), from, COLUMNS, dim, stage, stage);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float inverse = 1.0f / warp_sum<16>(total[i]);
    const int64_t at = first + row + i;
    if (at >= last) continue;
    T* y = static_cast<T*>(a.y) + ((b * p.tq + at) * p.heads + h) * dim;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const int c = threadIdx.x % 16 + 16 * n;
      if (from + c < dim) y[from + c] = from_float<T>(seen[i] ? out[i][n] * inverse : stage[c]);
    }
    if (a.norms && from == 0 && threadIdx.x % 16 == 0) {
      float* norm = a.norms + 2 * (head * p.tq + at);
      norm[0] = seen[i] ? top[i] : 0.0f;
      norm[1] = seen[i] ? inverse : 0.0f;
    }
  }
}

}  // namespace deem::cuda
