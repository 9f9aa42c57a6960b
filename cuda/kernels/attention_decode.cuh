// Few queries against many keys: limited by reading keys and values, so a block takes all queries of all heads that share a head
// of keys (up to 8 rows), and blocks share out the keys. Each leaves maximum, sum and weighted values; merge_parts puts them
// together in order.
#pragma once
#include "cuda/kernels/attention_tile.cuh"

namespace deem::cuda {

constexpr int kDecodeThreads = 128;
constexpr int kDecodeMost = 8;      // queries; rows of a block
constexpr int kDecodeBlocks = 512;  // wanted; of any GPU, so that sums are cut the same everywhere
constexpr int kDecodePart = 128;    // least keys of a part

// Of a part and row: maximum, sum, dim values.
struct DecodeParts {
  float* data;
  int count;
};

// 16 bytes of a row as floats, zeros past dim.
template <class T, int N = kVecWidth<T>>
DEEM_DEVICE void load_chunk(const T* row, int column, int dim, bool vectors, float (&x)[N]) {
  if (vectors) return load_float<N>(row + column, x);
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = column + i < dim ? to_float(row[column + i]) : 0.0f;
}

// exp, as accurate as the type deserves.
template <class T>
DEEM_DEVICE float exp_of(float v) {
  if constexpr (sizeof(T) == 4) return expf(v);
  else return exp2_approx(v * kLog2e);
}

// Rows of the problem: row r of a head of keys is query r % tq of its head r / tq.
struct DecodeRow {
  int64_t head, query;
};
DEEM_DEVICE DecodeRow decode_row(const AttentionProblem& p, int64_t kv, int64_t r) {
  return {kv * (p.heads / p.kv_heads) + r / p.tq, r % p.tq};
}

// Grid: (batch, head of keys, group of ROWS rows, part), the last fastest. lanes: of a key, a power of two.
template <class T, int ROWS>
__global__ void __launch_bounds__(kDecodeThreads, ROWS < 4 ? 4 : 2)
    attention_decode(AttentionArgs a, int groups, int lanes, bool vectors, DecodeParts parts) {
  constexpr int W = kVecWidth<T>, kAtOnce = ROWS < 4 ? 4 : 2;  // keys whose loads are under way together
  DEEM_SHARED_DYN(float, queries);                             // [ROWS][chunks * W], times scale
  DEEM_SHARED(float, scores, ROWS* kTile);
  DEEM_SHARED(float, tops, ROWS);
  DEEM_SHARED(float, totals, ROWS);
  DEEM_SHARED(float, factors, ROWS);
  DEEM_SHARED(int, seen, ROWS);
  DEEM_SHARED(float, sums, kDecodeThreads* W);
  const AttentionProblem& p = a.p;
  const int part = blockIdx.x % parts.count, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int64_t group = blockIdx.x / parts.count % groups, pair = blockIdx.x / parts.count / groups;
  const int64_t b = pair / p.kv_heads, kv = pair % p.kv_heads, rows = p.heads / p.kv_heads * p.tq;
  const int dim = int(p.dim), chunks = (dim + W - 1) / W, width = chunks * W;
  const Plan plan = plan_of(p, b);
  const int most = plan.seen[p.tq - 1];
  const int each = ((most + parts.count - 1) / parts.count + kTile - 1) / kTile * kTile;
  const int first = part * each < most ? part * each : most, last = first + each < most ? first + each : most;
  const Rows<T> k = kept_of<T>(p.k, b, kv, plan), v = kept_of<T>(p.v, b, kv, plan);

  for (int i = tid; i < ROWS * width; i += kDecodeThreads) {
    const int64_t r = group * ROWS + i / width;
    const int c = i % width;
    float x = 0;
    if (r < rows && c < dim) {
      const DecodeRow at = decode_row(p, kv, r);
      x = to_float(head_of<T>(p.q, b, at.head, p.tq).at(int(at.query))[c]) * p.scale;
    }
    queries[i] = x;
  }
  if (tid < ROWS) {
    const int64_t r = group * ROWS + tid;
    tops[tid] = kNever, totals[tid] = 0, seen[tid] = r < rows ? plan.seen[decode_row(p, kv, r).query] : 0;
  }

  // Of the values, a thread takes one chunk of columns and every `sharers`-th key.
  const int sharers = kDecodeThreads / chunks, share = tid / chunks, column = tid % chunks * W;
  float out[ROWS][W] = {};
  const int abreast = kDecodeThreads / lanes;  // keys that the block's lanes cover
  for (int t = first; t < last; t += kTile) {
    __syncthreads();
    const int n = last - t < kTile ? last - t : kTile;
    for (int j0 = 0; j0 < n; j0 += abreast * kAtOnce) {
      float dot[kAtOnce][ROWS] = {};
      for (int c = tid % lanes; c < chunks; c += lanes) {
        float x[kAtOnce][W] = {};
#pragma unroll
        for (int u = 0; u < kAtOnce; u++) {
          const int j = j0 + u * abreast + tid / lanes;
          if (j < n) load_chunk(k.at(t + j), c * W, dim, vectors, x[u]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
          for (int i = 0; i < W; i++) {
            const float y = queries[r * width + c * W + i];
#pragma unroll
            for (int u = 0; u < kAtOnce; u++) dot[u][r] = fmaf(x[u][i], y, dot[u][r]);
          }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; u++) {
        const int j = j0 + u * abreast + tid / lanes;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          float s = dot[u][r];
          for (int l = lanes / 2; l > 0; l /= 2) s += exchange_xor(s, l);
          if (tid % lanes == 0 && j < kTile) scores[r * kTile + j] = t + j < seen[r] && j < n ? s : kNever;
        }
      }
    }
    __syncthreads();
    for (int r = warp; r < ROWS; r += kDecodeThreads / 32) {
      float* s = scores + r * kTile;
      const float x0 = lane < n ? s[lane] : kNever, x1 = lane + 32 < n ? s[lane + 32] : kNever;
      const float before = tops[r], best = fmaxf(before, warp_max(fmaxf(x0, x1)));
      const float base = best == kNever ? 0.0f : best, e0 = exp_of<T>(x0 - base), e1 = exp_of<T>(x1 - base);
      const float sum = warp_sum(e0 + e1), factor = exp_of<T>(before - base);
      s[lane] = e0, s[lane + 32] = e1;
      __syncwarp();  // all lanes have read tops
      if (lane == 0) tops[r] = best, factors[r] = factor, totals[r] = totals[r] * factor + sum;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int i = 0; i < W; i++) out[r][i] *= factors[r];
    if (share < sharers)
      for (int j0 = share; j0 < n; j0 += sharers * kAtOnce) {
        float x[kAtOnce][W] = {};
#pragma unroll
        for (int u = 0; u < kAtOnce; u++)
          if (j0 + u * sharers < n) load_chunk(v.at(t + j0 + u * sharers), column, dim, vectors, x[u]);
#pragma unroll
        for (int u = 0; u < kAtOnce; u++)
#pragma unroll
          for (int r = 0; r < ROWS; r++) {
            const float weight = j0 + u * sharers < n ? scores[r * kTile + j0 + u * sharers] : 0.0f;
#pragma unroll
            for (int i = 0; i < W; i++) out[r][i] = fmaf(weight, x[u][i], out[r][i]);
          }
      }
  }

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int64_t row = group * ROWS + r;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < W; i++) sums[tid * W + i] = out[r][i];
    __syncthreads();
    if (row >= rows) continue;
    float* to = parts.data + ((pair * rows + row) * parts.count + part) * (dim + 2);
    for (int c = tid; c < dim; c += kDecodeThreads) {
      float sum = 0;
      for (int s = 0; s < sharers; s++) sum += sums[s * width + c];
      to[2 + c] = sum;
    }
    if (tid == 0) to[0] = tops[r], to[1] = totals[r];
  }
}

// A block for each row.
template <class T>
__global__ void __launch_bounds__(kDecodeThreads) merge_parts(AttentionArgs a, DecodeParts parts) {
  DEEM_SHARED_DYN(float, mean);  // [4 * dim]
  const AttentionProblem& p = a.p;
  const int64_t rows = p.heads / p.kv_heads * p.tq, pair = blockIdx.x / rows, b = pair / p.kv_heads,
                kv = pair % p.kv_heads;
  const DecodeRow at = decode_row(p, kv, blockIdx.x % rows);
  const int dim = int(p.dim);
  const bool sees = plan_of(p, b).seen[at.query] > 0;
  const float* from = parts.data + int64_t(blockIdx.x) * parts.count * (dim + 2);
  T* y = static_cast<T*>(a.y) + ((b * p.tq + at.query) * p.heads + at.head) * dim;

  float top = kNever, total = 0;
  for (int s = 0; s < parts.count; s++) top = fmaxf(top, from[s * (dim + 2)]);
  const float base = top == kNever ? 0.0f : top;
  for (int s = 0; s < parts.count; s++) total += from[s * (dim + 2) + 1] * exp_of<T>(from[s * (dim + 2)] - base);
  const float inverse = 1.0f / total;
  if (!sees) mean_of_values(head_of<T>(p.v, b, kv, p.tk), int(p.tk), 0, dim, dim, mean, mean);
  for (int c = threadIdx.x; c < dim; c += kDecodeThreads) {
    float sum = 0;
    for (int s = 0; s < parts.count; s++) {
      const float* part = from + s * (dim + 2);
      sum += part[2 + c] * exp_of<T>(part[0] - base);
    }
    y[c] = from_float<T>(sees ? sum * inverse : mean[c]);
  }
  if (a.norms && threadIdx.x == 0) {
    float* norm = a.norms + 2 * ((b * p.heads + at.head) * p.tq + at.query);
    norm[0] = sees ? top : 0.0f;
    norm[1] = sees ? inverse : 0.0f;
  }
}

}  // namespace deem::cuda
