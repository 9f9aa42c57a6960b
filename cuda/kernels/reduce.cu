// Sums in double, in an order that the sizes alone decide: threads take packs of 8 elements whether or not these can be loaded
// as one vector.
#include "ops/reduce.h"

#include "cuda/column_sums.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace {

constexpr int kThreads = 256, kPack = 8;

// Sum over i of term(i) for the elements of a run that belong to this of `lanes` threads. Terms are doubles that
// term(i, count, v) writes for a pack.
template <class Term>
__device__ inline double sum_run(const Term& term, int64_t n, int lane, int lanes) {
  double sum = 0;
  for (int64_t i = int64_t(lane) * kPack; i < n; i += int64_t(lanes) * kPack) {
    double v[kPack];
    term(i, int(smaller<int64_t>(kPack, n - i)), v);
    sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }
  return sum;
}

// kPack elements as two vectors of 16 bytes for f32, as one for the others.
template <class T>
__device__ inline void read_run(const T* p, int count, float (&v)[kPack], bool vector) {
  constexpr int N = kVecWidth<T>;
  if (count == kPack && vector) {
#pragma unroll
    for (int k = 0; k < kPack; k += N) {
      float part[N];
      read_floats<N>(p + k, N, part);
#pragma unroll
      for (int j = 0; j < N; j++) v[k + j] = part[j];
    }
  } else {
    read_floats<kPack>(p, count, v, false);
  }
}

template <class T>
struct ValueTerm {
  const T* x;
  bool vector;

  __device__ explicit ValueTerm(const T* x) : x(x), vector(is_aligned<kVecWidth<T>>(x)) {}
  __device__ void operator()(int64_t i, int count, double (&out)[kPack]) const {
    float v[kPack];
    read_run(x + i, count, v, vector);
#pragma unroll
    for (int k = 0; k < kPack; k++) out[k] = double(v[k]);
  }
};

template <class T>
struct SquareTerm {
  const T *a, *b;  // b may be null
  bool vector;

  __device__ SquareTerm(const T* a, const T* b)
      : a(a), b(b), vector(is_aligned<kVecWidth<T>>(a) && is_aligned<kVecWidth<T>>(b)) {}
  __device__ void operator()(int64_t i, int count, double (&out)[kPack]) const {
    float u[kPack], v[kPack] = {};
    read_run(a + i, count, u, vector);
    if (b) read_run(b + i, count, v, vector);
#pragma unroll
    for (int k = 0; k < kPack; k++) {
      const double d = double(u[k]) - double(v[k]);
      out[k] = d * d;
    }
  }
};

// ---- sum ----------------------------------------------------------------------------------------------------------

// Runs of `rows` elements, each by a warp or a block, or in parts by several blocks.
template <class T, int LANES>
__global__ void __launch_bounds__(kThreads)
    sum_long(const T* x, SumOutput out, double* partial, int64_t rows, SumPlan plan, int64_t items) {
  constexpr int kGroups = kThreads / LANES;
  const int lane = threadIdx.x % LANES;
  for (int64_t item = int64_t(blockIdx.x) * kGroups + threadIdx.x / LANES; item < items;
       item += int64_t(gridDim.x) * kGroups) {
    const int64_t o = item / plan.splits, first = (item - o * plan.splits) * plan.split_rows;
    double sum = sum_run(ValueTerm<T>(x + o * rows + first), smaller(plan.split_rows, rows - first), lane, LANES);
    if constexpr (LANES == 32) sum = warp_sum(sum);
    else sum = block_sum<LANES>(sum);
    if (lane != 0) continue;
    if (partial) partial[item] = sum;
    else out.put(o, sum);
  }
}

void sum(const SumArgs& a) {
  const SumOutput out{a.y, a.y_dtype, a.scale};
  dispatch(a.x_dtype, "sum", [&]<class T>(T) {
    const T* x = static_cast<const T*>(a.x);
    if (a.inner != 1) return sum_middle<double>(x, static_cast<const T*>(a.times), out, a.outer, a.rows, a.inner);
    if (a.outer <= 0) return;
    const dim3 block(kThreads);
    if (a.rows <= 1024) {
      const SumPlan whole{1, larger<int64_t>(a.rows, 1)};
      DEEM_LAUNCH((sum_long<T, 32>), sum_grid((a.outer + 7) / 8), block, 0, stream(), x, out, nullptr, a.rows, whole,
                  a.outer);
      return;
    }
    const SumPlan plan = plan_sum(a.outer, a.rows, 4 * kThreads * kPack);
    Scratch<double> parts(plan.splits > 1 ? a.outer * plan.splits : 0);
    double* partial = plan.splits > 1 ? parts.data() : nullptr;
    const int64_t items = a.outer * plan.splits;
    DEEM_LAUNCH((sum_long<T, kThreads>), sum_grid(items), block, 0, stream(), x, out, partial, a.rows, plan, items);
    if (partial) add_parts<double>(partial, out, a.outer, plan.splits, 1);
  });
}

// ---- sum_squares, mse_loss ----------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_squares_parts(const T* a, const T* b, double* partial, int64_t n, int64_t part) {
  const int64_t first = int64_t(blockIdx.x) * part;
  const double sum = block_sum<kThreads>(
      sum_run(SquareTerm<T>(a + first, b ? b + first : nullptr), smaller(part, n - first), threadIdx.x, kThreads));
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_squares_total(const double* partial, int64_t parts, double* sum, float* mean, int64_t n) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kThreads) total += partial[i];
  total = block_sum<kThreads>(total);
  if (threadIdx.x != 0) return;
  if (sum) *sum = total;
  if (mean) *mean = float(total / double(n));
}

void sum_squares(const SumSquaresArgs& s) {
  dispatch(s.dtype, "sum_squares", [&]<class T>(T) {
    const int64_t part = larger<int64_t>(4 * kThreads * kPack, (s.n + kSumBlocks - 1) / kSumBlocks + kPack - 1) /
                         kPack * kPack,
                  parts = (s.n + part - 1) / part;
    Scratch<double> partial(parts);
    if (parts > 0)
      DEEM_LAUNCH((sum_squares_parts<T>), dim3(unsigned(parts)), dim3(kThreads), 0, stream(),
                  static_cast<const T*>(s.a), static_cast<const T*>(s.b), partial.data(), s.n, part);
    DEEM_LAUNCH(sum_squares_total, dim3(1), dim3(kThreads), 0, stream(), partial.data(), parts, s.sum, s.mean, s.n);
  });
}

template <class T>
struct MseBackwardWalk {
  const T *x, *target;
  const float* dy;
  T* dx;
  float scale;

  template <int N>
  __device__ void at(int64_t i, int count) const {
    const float g = scale * *dy;
    float u[N], v[N];
    read_floats<N>(x + i, count, u);
    read_floats<N>(target + i, count, v);
#pragma unroll
    for (int k = 0; k < N; k++) u[k] = (u[k] - v[k]) * g;
    write_floats<N>(dx + i, u, count);
  }
};

void mse_backward(const MseBackwardArgs& a) {
  dispatch(a.dtype, "mse_loss_backward", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const MseBackwardWalk<T> f{static_cast<const T*>(a.x), static_cast<const T*>(a.target), a.dy, static_cast<T*>(a.dx),
                               a.scale};
    for_flat<N>(f, a.n, is_aligned<N>(f.x) && is_aligned<N>(f.target) && is_aligned<N>(f.dx));
  });
}

// ---- argmax -------------------------------------------------------------------------------------------------------

// A value's rank as an integer: ordered as the floats are, both zeros alike, NaN above all.
__device__ inline uint32_t rank_of(float v) {
  if (v != v) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(v == 0 ? 0.0f : v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Best {
  uint32_t rank;
  int64_t at;

  __device__ void meet(uint32_t other_rank, int64_t other) {
    if (other_rank < rank || (other_rank == rank && other >= at)) return;
    rank = other_rank;
    at = other;
  }
  __device__ void meet_lane(int lanes) {
    const uint32_t low = __shfl_xor_sync(0xffffffffu, uint32_t(at), lanes),
                   high = __shfl_xor_sync(0xffffffffu, uint32_t(uint64_t(at) >> 32), lanes);
    meet(__shfl_xor_sync(0xffffffffu, rank, lanes), int64_t(uint64_t(high) << 32 | low));
  }
};

template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS) argmax_rows(const T* x, int64_t* y, int64_t rows, int64_t cols) {
  constexpr int N = kVecWidth<T>, kWarps = THREADS / 32;
  DEEM_SHARED(uint32_t, ranks, kWarps);
  DEEM_SHARED(int64_t, places, kWarps);
  const int t = threadIdx.x;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = x + row * cols;
    const bool vector = is_aligned<N>(from);
    Best best{0, INT64_MAX};  // below every value
    for (int64_t i = int64_t(t) * N; i < cols; i += int64_t(THREADS) * N) {
      const int count = int(smaller<int64_t>(N, cols - i));
      float v[N];
      read_floats<N>(from + i, count, v, vector);
#pragma unroll
      for (int k = 0; k < N; k++)
        if (k < count) best.meet(rank_of(v[k]), i + k);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) best.meet_lane(lanes);
    if constexpr (kWarps > 1) {
      if (t % 32 == 0) {
        ranks[t / 32] = best.rank;
        places[t / 32] = best.at;
      }
      __syncthreads();
      if (t == 0)
        for (int w = 1; w < kWarps; w++) best.meet(ranks[w], places[w]);
      __syncthreads();
    }
    if (t == 0) y[row] = best.at;
  }
}

template <class T, int THREADS>
void launch_argmax(const ArgmaxArgs& a) {
  DEEM_LAUNCH((argmax_rows<T, THREADS>), sum_grid(a.rows), dim3(THREADS), 0, stream(), static_cast<const T*>(a.x), a.y,
              a.rows, a.cols);
}

void argmax(const ArgmaxArgs& a) {
  if (a.rows <= 0) return;
  dispatch(a.dtype, "argmax", [&]<class T>(T) {
    if (a.cols <= 512) launch_argmax<T, 32>(a);
    else if (a.cols <= 8192) launch_argmax<T, 256>(a);
    else launch_argmax<T, 1024>(a);
  });
}

}  // namespace

DEEM_CUDA_KERNEL("sum", sum);
DEEM_CUDA_KERNEL("sum_squares", sum_squares);
DEEM_CUDA_KERNEL("mse_loss_backward", mse_backward);
DEEM_CUDA_KERNEL("argmax", argmax);

}  // namespace deem::cuda
