// Elementwise walks. A functor does up to N neighbouring elements at a time: N is a 16-byte vector where every operand is
// aligned for it and 1 elsewhere, so that one body serves both. Which thread does what changes no result.
//   struct F { template <int N> __device__ void at(int64_t i, int count) const; };   // elements i..i + count - 1, count <= N
#pragma once
#include "cuda/device.cuh"
#include "cuda/runtime.h"
#include "cuda/vec.cuh"
#include "ops/strided.h"

namespace deem::cuda {

constexpr int kWalkThreads = 256;

template <class T>
__host__ __device__ inline T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
__host__ __device__ inline T larger(T a, T b) {
  return a < b ? b : a;
}

template <int N, class T>
__host__ __device__ inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (N * sizeof(T)) == 0;
}

// p[0..count), then zeros; one load where the pack is whole and `vector` says that p is aligned for it.
template <int N, class T>
__device__ inline Vec<T, N> read_pack(const T* p, int count, bool vector = true) {
  if (count == N && vector) return *reinterpret_cast<const Vec<T, N>*>(p);
  Vec<T, N> v{};
#pragma unroll
  for (int k = 0; k < N; k++)
    if (k < count) v.v[k] = p[k];
  return v;
}

template <int N, class T>
__device__ inline void write_pack(T* p, const Vec<T, N>& v, int count, bool vector = true) {
  if (count == N && vector) {
    *reinterpret_cast<Vec<T, N>*>(p) = v;
    return;
  }
#pragma unroll
  for (int k = 0; k < N; k++)
    if (k < count) p[k] = v.v[k];
}

template <int N, class T>
__device__ inline void read_floats(const T* p, int count, float (&out)[N], bool vector = true) {
  const Vec<T, N> v = read_pack<N>(p, count, vector);
#pragma unroll
  for (int k = 0; k < N; k++) out[k] = to_float(v.v[k]);
}

template <int N, class T>
__device__ inline void write_floats(T* p, const float (&in)[N], int count, bool vector = true) {
  Vec<T, N> v;
#pragma unroll
  for (int k = 0; k < N; k++) v.v[k] = from_float<T>(in[k]);
  write_pack<N>(p, v, count, vector);
}

// n / d for 0 <= n < bound; below 2^31 by multiplying (Granlund and Montgomery, "Division by invariant integers using
// multiplication", 1994), which costs a tenth of a 64-bit division.
struct Divider {
  int64_t d = 1;
  uint32_t magic = 1, shift = 0;
  bool wide = false;

  Divider() = default;
  Divider(int64_t divisor, int64_t bound) : d(divisor), wide(bound > INT32_MAX || divisor > INT32_MAX) {
    if (wide) return;
    while ((int64_t(1) << shift) < d) shift++;
    magic = uint32_t((uint64_t((int64_t(1) << shift) - d) << 32) / uint64_t(d)) + 1;
  }
  __device__ int64_t divide(int64_t n) const {
    if (wide) return n / d;
    return (__umulhi(uint32_t(n), magic) + uint32_t(n)) >> shift;
  }
};

// Enough blocks for `items` threads, or for all multiprocessors several times over; walks stride by the grid.
inline dim3 walk_grid(int64_t items) {
  return dim3(unsigned(smaller<int64_t>((items + kWalkThreads - 1) / kWalkThreads, int64_t(sm_count()) * 64)));
}

__device__ inline int64_t walk_begin() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t walk_step() { return int64_t(gridDim.x) * blockDim.x; }

// ---- n elements in a row ------------------------------------------------------------------------------------------

template <int N, class F>
static __global__ void __launch_bounds__(kWalkThreads) walk_flat(F f, int64_t n) {
  const int64_t packs = (n + N - 1) / N;
  for (int64_t p = walk_begin(); p < packs; p += walk_step())
    f.template at<N>(p * N, int(smaller<int64_t>(N, n - p * N)));
}

// `vector`: every operand is aligned for N elements of its.
template <int N, class F>
void for_flat(const F& f, int64_t n, bool vector) {
  if (n <= 0) return;
  if (vector) DEEM_LAUNCH((walk_flat<N, F>), walk_grid((n + N - 1) / N), dim3(kWalkThreads), 0, stream(), f, n);
  else DEEM_LAUNCH((walk_flat<1, F>), walk_grid(n), dim3(kWalkThreads), 0, stream(), f, n);
}

// ---- rows of `cols` elements: at<N>(row, column, count) -----------------------------------------------------------

template <int N, class F>
static __global__ void __launch_bounds__(kWalkThreads) walk_rows(F f, int64_t items, int64_t cols, Divider packs) {
  for (int64_t i = walk_begin(); i < items; i += walk_step()) {
    const int64_t row = packs.divide(i), column = (i - row * packs.d) * N;
    f.template at<N>(row, column, int(smaller<int64_t>(N, cols - column)));
  }
}

// `vector`: every row of every operand is aligned for N elements of its.
template <int N, class F>
void for_rows(const F& f, int64_t rows, int64_t cols, bool vector) {
  if (rows <= 0 || cols <= 0) return;
  const int64_t packs = vector ? (cols + N - 1) / N : cols, items = rows * packs;
  const Divider divider(packs, items);
  if (vector)
    DEEM_LAUNCH((walk_rows<N, F>), walk_grid(items), dim3(kWalkThreads), 0, stream(), f, items, cols, divider);
  else DEEM_LAUNCH((walk_rows<1, F>), walk_grid(items), dim3(kWalkThreads), 0, stream(), f, items, cols, divider);
}

// ---- strided operands: at<N>(offsets of the operands, count) ------------------------------------------------------

template <int K>
struct Axes {               // innermost first
  int ndim;                 // at least 1
  int64_t items, inner;     // packs in all; elements of the innermost axis
  Divider sizes[kMaxDims];  // in packs for the innermost one
  int64_t strides[K][kMaxDims];
};

template <int N, int K, class F>
static __global__ void __launch_bounds__(kWalkThreads) walk_strided(F f, Axes<K> axes) {
  for (int64_t i = walk_begin(); i < axes.items; i += walk_step()) {
    int64_t rest = axes.ndim > 1 ? axes.sizes[0].divide(i) : 0;
    const int64_t start = (i - rest * axes.sizes[0].d) * N;
    int64_t at[K];
#pragma unroll
    for (int k = 0; k < K; k++) at[k] = start * axes.strides[k][0];
#pragma unroll
    for (int d = 1; d < kMaxDims; d++) {
      if (d >= axes.ndim) break;
      const int64_t next = d + 1 < axes.ndim ? axes.sizes[d].divide(rest) : 0, place = rest - next * axes.sizes[d].d;
#pragma unroll
      for (int k = 0; k < K; k++) at[k] += place * axes.strides[k][d];
      rest = next;
    }
    f.template at<N>(at, int(smaller<int64_t>(N, axes.inner - start)));
  }
}

template <int K>
Axes<K> packed_axes(const Strided<K>& s, int n) {
  Axes<K> axes;
  axes.ndim = s.ndim;
  axes.inner = s.shape[s.ndim - 1];
  axes.items = (axes.inner + n - 1) / n;
  for (int d = 0; d + 1 < s.ndim; d++) axes.items *= s.shape[d];
  for (int d = 0; d < s.ndim; d++) {
    const int from = s.ndim - 1 - d;
    axes.sizes[d] = Divider(d == 0 ? (axes.inner + n - 1) / n : s.shape[from], axes.items);
    for (int k = 0; k < K; k++) axes.strides[k][d] = s.strides[k][from];
  }
  return axes;
}

// Whether operand k can be read in packs of N: its innermost stride is 1, and every run begins at a multiple of N
// elements. One number for a whole run (stride 0) needs no alignment.
template <int N, class T, int K>
bool packs_fit(const Strided<K>& s, int k, const T* p) {
  const int last = s.ndim - 1;
  if (s.strides[k][last] == 0) return true;
  if (s.strides[k][last] != 1 || !is_aligned<N>(p)) return false;
  for (int d = 0; d < last; d++)
    if (s.strides[k][d] % N != 0) return false;
  return true;
}

template <int N, int K, class F>
void for_strided(const F& f, const Strided<K>& s, bool vector) {
  const Axes<K> axes = packed_axes(s, vector ? N : 1);
  if (axes.items <= 0) return;
  if (vector) DEEM_LAUNCH((walk_strided<N, K, F>), walk_grid(axes.items), dim3(kWalkThreads), 0, stream(), f, axes);
  else DEEM_LAUNCH((walk_strided<1, K, F>), walk_grid(axes.items), dim3(kWalkThreads), 0, stream(), f, axes);
}

}  // namespace deem::cuda
