// What the attention kernels share: where rows lie, the plan of a batch, and matrix fragments out of tiles in shared memory.
// Scores are held in f32 registers; a query that sees no key is settled apart, as the mean of all values.
#pragma once
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "ops/attention.h"

namespace deem::cuda {

constexpr int kTile = 64;  // queries or keys of a tile
constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;
constexpr float kNever = -INFINITY;  // the score of a key that is not seen

// Tokens of one head. A row of it is 16-byte aligned throughout, or read element by element.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  const int32_t* order;  // row t lies at position order[t]; null: at t
  int end;               // rows from here on read as zeros
  DEEM_DEVICE const T* at(int t) const { return data + (order ? order[t] : t) * stride; }
};

template <class T>
DEEM_DEVICE Rows<T> head_of(const HeadRows& x, int64_t b, int64_t h, int64_t tokens) {
  return {static_cast<const T*>(x.data) + b * x.batch + h * x.head, x.row, nullptr, int(tokens)};
}
// The head of a contiguous [B, T, H, D].
template <class T>
DEEM_DEVICE Rows<T> head_of(const void* x, int64_t b, int64_t h, int64_t tokens, int64_t heads, int64_t dim) {
  return {static_cast<const T*>(x) + (b * tokens * heads + h) * dim, heads * dim, nullptr, int(tokens)};
}

struct Plan {
  const int32_t *order, *seen;
  int count;
};
DEEM_DEVICE Plan plan_of(const AttentionProblem& p, int64_t b) {
  const int32_t* plan = p.plan + b * p.plan_stride;
  return {plan + 1, plan + 1 + p.tk, plan[0]};
}

// The kept keys (or values) of a head; where they are a run of neighbours, rows need no look-up.
template <class T>
DEEM_DEVICE Rows<T> kept_of(const HeadRows& x, int64_t b, int64_t h, const Plan& plan) {
  Rows<T> rows = head_of<T>(x, b, h, plan.count);
  if (plan.count == 0) return rows;
  const int32_t first = plan.order[0];
  if (plan.order[plan.count - 1] - first == plan.count - 1) rows.data += first * rows.stride;
  else rows.order = plan.order;
  return rows;
}

// The first query that sees more than `keys` keys.
DEEM_DEVICE int first_to_see(const Plan& plan, int tq, int keys) {
  int low = 0, high = tq;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (plan.seen[middle] > keys) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Whether the key at a position is kept.
DEEM_DEVICE bool is_kept(const Plan& plan, int position) {
  int low = 0, high = plan.count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (plan.order[middle] < position) low = middle + 1;
    else high = middle;
  }
  return low < plan.count && plan.order[low] == position;
}

// mean[c] = the mean over all tk values of columns from + c, c < columns, of 4 warps or more; `partial` holds 4 * columns floats
// and may be where `mean` is. Ends with a barrier.
template <class T>
DEEM_DEVICE void mean_of_values(const Rows<T>& v, int tk, int from, int columns, int dim, float* partial, float* mean) {
  const int warp = threadIdx.x / 32;
  for (int c = threadIdx.x % 32; c < columns && warp < 4; c += 32) {
    float sum = 0;
    if (from + c < dim)
      for (int t = warp; t < tk; t += 4) sum += to_float(v.data[t * v.stride + from + c]);
    partial[warp * columns + c] = sum;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < columns; c += blockDim.x)
    mean[c] = (partial[c] + partial[columns + c] + partial[2 * columns + c] + partial[3 * columns + c]) / float(tk);
  __syncthreads();
}

// ---- tiles of 16-bit elements in shared memory, D columns (a multiple of 16), rows padded so that ldmatrix meets no bank twice

template <int D>
constexpr int kLd = D + 8;

// Begins to load ROWS rows from `first`, zeros where there are none; `vectors`: rows are 16-byte aligned and dim is a multiple of
// 8. Complete after cp_async_wait and a barrier.
template <int D, int ROWS, int THREADS, class T>
DEEM_DEVICE void load_tile(T* tile, const Rows<T>& rows, int first, int dim, bool vectors) {
  if (vectors) {
    constexpr int kChunks = D / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * kChunks; i += THREADS) {
      const int r = i / kChunks, c = i % kChunks * 8, t = first + r;
      const bool valid = t < rows.end && c < dim;
      cp_async_16(tile + r * kLd<D> + c, valid ? rows.at(t) + c : rows.data, valid);
    }
  } else {
    for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
      const int r = i / D, c = i % D, t = first + r;
      tile[r * kLd<D> + c] = t < rows.end && c < dim ? rows.at(t)[c] : from_float<T>(0.0f);
    }
  }
}

// The 16 x 16 block at a row and column as a left operand.
template <int D, class T>
DEEM_DEVICE void load_left(uint32_t (&a)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4(a, tile + (row + lane % 16) * kLd<D> + column + lane / 16 * 8);
}

// Two right operands of the 16 rows at `row`: of the transposed tile (rows are columns of the product), and of the tile itself
// (rows are summed over).
template <int D, class T>
DEEM_DEVICE void load_right(uint32_t (&b)[2][2], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  ldmatrix_x4(r, tile + (row + lane / 16 * 8 + lane % 8) * kLd<D> + column + lane / 8 % 2 * 8);
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
template <int D, class T>
DEEM_DEVICE void load_right_summed(uint32_t (&b)[2][2], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  ldmatrix_x4_trans(r, tile + (row + lane % 16) * kLd<D> + column + lane / 16 * 8);
  b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

template <class T>
DEEM_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) mma_f16(d, a, b);
  else mma_bf16(d, a, b);
}

// s += the 16 rows of `left` at `row` times all rows of `right`, over D columns.
template <int D, int N, class T>
DEEM_DEVICE void multiply_rows(float (&s)[N][4], const T* left, int row, const T* right) {
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    uint32_t a[4], b[2][2];
    load_left<D>(a, left, row, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      load_right<D>(b, right, n * 8, k);
      multiply_add<T>(s[n], a, b[0]);
      multiply_add<T>(s[n + 1], a, b[1]);
    }
  }
}

// Scores of this warp, rounded, as left operands: registers of a result are those of an operand.
template <int N, class T>
struct Weights {
  uint32_t a[N / 2][4];
  DEEM_DEVICE explicit Weights(const float (&s)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
      a[k][0] = pack<T>(s[2 * k][0], s[2 * k][1]);
      a[k][1] = pack<T>(s[2 * k][2], s[2 * k][3]);
      a[k][2] = pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]);
      a[k][3] = pack<T>(s[2 * k + 1][2], s[2 * k + 1][3]);
    }
  }
};

// out += weights times the rows of a tile.
template <int D, int N, class T>
DEEM_DEVICE void multiply_weights(float (&out)[D / 8][4], const Weights<N, T>& w, const T* tile) {
#pragma unroll
  for (int k = 0; k < N / 2; k++)
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t b[2][2];
      load_right_summed<D>(b, tile, k * 16, n * 8);
      multiply_add<T>(out[n], w.a[k], b[0]);
      multiply_add<T>(out[n + 1], w.a[k], b[1]);
    }
}

// Rounds this warp's 16 rows into its part of a tile that nobody reads any more; its own rows are seen by all its lanes after.
template <int D, class T>
DEEM_DEVICE void stage_rows(T* tile, const float (&rows)[D / 8][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  T* to = tile + threadIdx.x / 32 * 16 * kLd<D>;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<uint32_t*>(to + (g + half * 8) * kLd<D> + n * 8 + t * 2) =
          pack<T>(rows[n][half * 2], rows[n][half * 2 + 1]);
  __syncwarp();
}

// Writes what stage_rows left; the warp's row r goes to `to(r)`, null for none.
template <int D, class T, class To>
DEEM_DEVICE void write_rows(const T* tile, int dim, bool vectors, To&& to) {
  constexpr int kChunks = D / 8;
  const T* from = tile + threadIdx.x / 32 * 16 * kLd<D>;
  for (int i = threadIdx.x % 32; i < 16 * kChunks; i += 32) {
    const int r = i / kChunks, c = i % kChunks * 8;
    T* y = to(r);
    if (!y || c >= dim) continue;
    if (vectors) store_vec(y + c, load_vec<8>(from + r * kLd<D> + c));
    else
      for (int d = c; d < dim && d < c + 8; d++) y[d] = from[r * kLd<D> + d];
  }
}

// ---- host side

// Whether 16-byte loads of all rows are aligned.
inline bool aligned_rows(const HeadRows& x, int64_t dim, size_t element) {
  const int64_t width = 16 / int64_t(element);
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % width == 0 && x.row % width == 0 &&
         x.head % width == 0 && dim % width == 0;
}
inline bool aligned_rows(const void* x, int64_t dim, size_t element) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0 && dim % (16 / int64_t(element)) == 0;
}

template <int N>
struct Width {
  static constexpr int value = N;
};
constexpr int64_t kWidest = 160;

// Calls f with the smallest head size that kernels are made for and that holds dim <= kWidest.
template <class F>
void dispatch_width(int64_t dim, F&& f) {
  if (dim <= 32) return f(Width<32>{});
  if (dim <= 48) return f(Width<48>{});
  if (dim <= 64) return f(Width<64>{});
  if (dim <= 80) return f(Width<80>{});
  if (dim <= 96) return f(Width<96>{});
  if (dim <= 128) return f(Width<128>{});
  return f(Width<160>{});
}

inline int tiles_of(int64_t tokens) { return int((tokens + kTile - 1) / kTile); }

}  // namespace deem::cuda
