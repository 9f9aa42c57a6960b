// Sums over the middle axis of x[outer, rows, inner], or of its products with `times` in f32 where that is not null, in Acc (float or
// double). How rows are cut up, and so the order of the sums, depends on the sizes alone, not on the device nor on how x is aligned.
#pragma once
#include "cuda/reduce.cuh"
#include "cuda/walk.cuh"

namespace deem::cuda {

// Where sums go: y[i] = scale * sum.
struct SumOutput {
  void* y;
  DType dtype;
  double scale;

  template <class Acc>
  __device__ void put(int64_t i, Acc sum) const {
    const float v = float(sum * Acc(scale));
    if (dtype == DType::f32) static_cast<float*>(y)[i] = v;
    else if (dtype == DType::bf16) static_cast<__nv_bfloat16*>(y)[i] = from_float<__nv_bfloat16>(v);
    else static_cast<__half*>(y)[i] = from_float<__half>(v);
  }
};

// Rows are summed in `splits` parts of `split_rows`, which one more kernel adds up where there are several.
struct SumPlan {
  int64_t splits, split_rows;
};
constexpr int64_t kSumBlocks = 1024;  // enough for the largest devices

// `items` is how many sums run beside each other anyway, `least` how many rows are worth a block.
inline SumPlan plan_sum(int64_t items, int64_t rows, int64_t least) {
  const int64_t wanted = larger<int64_t>(1, smaller(kSumBlocks / larger<int64_t>(items, 1), rows / least));
  const int64_t split_rows = larger<int64_t>(8, ((rows + wanted - 1) / wanted + 7) / 8 * 8);
  return {larger<int64_t>(1, (rows + split_rows - 1) / split_rows), split_rows};
}

// V numbers from x + i on, times those of `times`.
template <int V, class T>
__device__ inline void read_terms(const T* x, const T* times, int64_t i, float (&v)[V]) {
  read_floats<V>(x + i, V, v);
  if (!times) return;
  float by[V];
  read_floats<V>(times + i, V, by);
#pragma unroll
  for (int k = 0; k < V; k++) v[k] *= by[k];
}

constexpr int kColumnLanes = 32, kColumnLines = 8;

// A thread sums V neighbouring columns over every eighth row of a part; then the eight are added.
template <class Acc, class T, int V>
static __global__ void __launch_bounds__(kColumnLanes* kColumnLines, 4)
    sum_columns(const T* x, const T* times, SumOutput out, Acc* partial, int64_t rows, int64_t inner, SumPlan plan,
                int64_t tiles, int64_t items) {
  constexpr int kAhead = 4;  // rows whose loads are in flight together
  DEEM_SHARED(Acc, sums, kColumnLines * V * kColumnLanes);
  const int lane = threadIdx.x, line = threadIdx.y;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t part = item / tiles, o = part / plan.splits, first = (part - o * plan.splits) * plan.split_rows;
    const int64_t column = ((item - part * tiles) * kColumnLanes + lane) * V,
                  n = smaller(plan.split_rows, rows - first);
    const int64_t start = (o * rows + first) * inner + column;
    const T *from = x + start, *by = times ? times + start : nullptr;
    Acc sum[V] = {};
    if (column < inner) {
      int64_t r = line;
      for (; r + (kAhead - 1) * kColumnLines < n; r += kAhead * kColumnLines) {
        float v[kAhead][V];
#pragma unroll
        for (int j = 0; j < kAhead; j++) read_terms<V>(from, by, (r + j * kColumnLines) * inner, v[j]);
#pragma unroll
        for (int j = 0; j < kAhead; j++)
#pragma unroll
          for (int k = 0; k < V; k++) sum[k] += Acc(v[j][k]);
      }
      for (; r < n; r += kColumnLines) {
        float v[V];
        read_terms<V>(from, by, r * inner, v);
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] += Acc(v[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < V; k++) sums[(line * V + k) * kColumnLanes + lane] = sum[k];
    __syncthreads();
    if (line == 0 && column < inner) {
#pragma unroll
      for (int k = 0; k < V; k++) {
        for (int l = 1; l < kColumnLines; l++) sum[k] += sums[(l * V + k) * kColumnLanes + lane];
        if (partial) partial[part * inner + column + k] = sum[k];
        else out.put(o * inner + column + k, sum[k]);
      }
    }
    __syncthreads();
  }
}

// The same for rows narrower than a warp: a thread keeps to one column, walking over as many rows at once as fit in a block.
template <class Acc, class T>
static __global__ void __launch_bounds__(kWalkThreads)
    sum_narrow(const T* x, const T* times, SumOutput out, Acc* partial, int64_t rows, int inner, SumPlan plan,
               int64_t items) {
  DEEM_SHARED(Acc, sums, kWalkThreads);
  const int t = threadIdx.x, active = kWalkThreads / inner * inner;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t o = item / plan.splits, first = (item - o * plan.splits) * plan.split_rows,
                  n = smaller(plan.split_rows, rows - first) * inner;
    const int64_t start = (o * rows + first) * inner;
    Acc sum = 0;
    if (t < active)
      for (int64_t i = start + t; i < start + n; i += active)
        sum += Acc(to_float(x[i]) * (times ? to_float(times[i]) : 1.0f));
    sums[t] = sum;
    __syncthreads();
    if (t < inner) {
      for (int k = t + inner; k < active; k += inner) sum += sums[k];
      if (partial) partial[item * inner + t] = sum;
      else out.put(o * inner + t, sum);
    }
    __syncthreads();
  }
}

// y[o, i] = sum over the parts of partial[o, part, i], by one thread or by one warp.
template <class Acc, int LANES>
static __global__ void __launch_bounds__(kWalkThreads)
    sum_parts(const Acc* partial, SumOutput out, int64_t splits, int64_t inner, int64_t outputs) {
  const int lane = threadIdx.x % LANES;
  for (int64_t i = walk_begin() / LANES; i < outputs; i += walk_step() / LANES) {
    const int64_t o = i / inner;
    const Acc* from = partial + o * splits * inner + (i - o * inner);
    Acc sum = 0;
    for (int64_t s = lane; s < splits; s += LANES) sum += from[s * inner];
    sum = warp_sum<LANES>(sum);
    if (lane == 0) out.put(i, sum);
  }
}

template <class Acc>
void add_parts(const Acc* partial, const SumOutput& out, int64_t outer, int64_t splits, int64_t inner) {
  const int64_t n = outer * inner;
  const dim3 block(kWalkThreads);
  if (splits > 32 && n < (int64_t(1) << 20))
    DEEM_LAUNCH((sum_parts<Acc, 32>), walk_grid(n * 32), block, 0, stream(), partial, out, splits, inner, n);
  else DEEM_LAUNCH((sum_parts<Acc, 1>), walk_grid(n), block, 0, stream(), partial, out, splits, inner, n);
}

inline dim3 sum_grid(int64_t items) { return dim3(unsigned(smaller<int64_t>(items, int64_t(sm_count()) * 64))); }

// y[o, i] = scale * sum_r x[o, r, i] times[o, r, i]; inner is at least 2 unless rows is 1 or less.
template <class Acc, class T>
void sum_middle(const T* x, const T* times, const SumOutput& out, int64_t outer, int64_t rows, int64_t inner) {
  if (outer <= 0 || inner <= 0) return;
  constexpr int V = 4;
  const bool narrow = inner < kColumnLanes;
  // Tiles of the plan are those of V columns even where x allows only one.
  const SumPlan plan = narrow ? plan_sum(outer, rows, 4096 / inner)
                              : plan_sum(outer * ((inner + kColumnLanes * V - 1) / (kColumnLanes * V)), rows, 64);
  Scratch<Acc> parts(plan.splits > 1 ? outer * plan.splits * inner : 0);
  Acc* partial = plan.splits > 1 ? parts.data() : nullptr;
  const dim3 block(kColumnLanes, kColumnLines);
  if (narrow) {
    const int64_t items = outer * plan.splits;
    DEEM_LAUNCH((sum_narrow<Acc, T>), sum_grid(items), dim3(kWalkThreads), 0, stream(), x, times, out, partial, rows,
                int(inner), plan, items);
  } else if (inner % V == 0 && inner >= kColumnLanes * V && is_aligned<V>(x) && is_aligned<V>(times)) {
    const int64_t tiles = (inner + kColumnLanes * V - 1) / (kColumnLanes * V), items = outer * plan.splits * tiles;
    DEEM_LAUNCH((sum_columns<Acc, T, V>), sum_grid(items), block, 0, stream(), x, times, out, partial, rows, inner,
                plan, tiles, items);
  } else {
    const int64_t tiles = (inner + kColumnLanes - 1) / kColumnLanes, items = outer * plan.splits * tiles;
    DEEM_LAUNCH((sum_columns<Acc, T, 1>), sum_grid(items), block, 0, stream(), x, times, out, partial, rows, inner,
                plan, tiles, items);
  }
  if (partial) add_parts<Acc>(partial, out, outer, plan.splits, inner);
}

}  // namespace deem::cuda
