#include "ops/embedding.h"

#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

template <class T>
struct EmbeddingWalk {
  const T *table, *images;
  const int64_t* source;
  const T* added;
  const uint8_t* marked;
  T* y;
  int64_t cols;

  template <int N>
  __device__ void at(int64_t row, int64_t column, int count) const {
    const int64_t from = source[row];
    const T* x = from >= 0 ? table + from * cols : images + ~from * cols;
    Vec<T, N> v = read_pack<N>(x + column, count);
    if (marked && marked[row]) {
      const Vec<T, N> more = read_pack<N>(added + column, count);
#pragma unroll
      for (int k = 0; k < N; k++) v.v[k] = from_float<T>(to_float(v.v[k]) + to_float(more.v[k]));
    }
    write_pack<N>(y + row * cols + column, v, count);
  }
};

void embedding(const EmbeddingArgs& a) {
  dispatch(a.dtype, "embedding", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const EmbeddingWalk<T> f{static_cast<const T*>(a.table),
                             static_cast<const T*>(a.images),
                             a.source,
                             static_cast<const T*>(a.added),
                             a.marked,
                             static_cast<T*>(a.y),
                             a.cols};
    for_rows<N>(f, a.rows, a.cols,
                a.cols % N == 0 && is_aligned<N>(f.table) && is_aligned<N>(f.images) && is_aligned<N>(f.added) &&
                    is_aligned<N>(f.y));
  });
}

// A thread owns some columns of a segment and adds its rows in order; the loads of several rows are in flight together.
template <class T>
struct SumRowsWalk {
  const T* x;
  const int64_t *order, *begin, *target;
  T* to;
  int64_t cols;

  template <int N>
  __device__ void at(int64_t segment, int64_t column, int count) const {
    constexpr int kAhead = 4;
    float sum[N] = {};
    const int64_t end = begin[segment + 1];
    int64_t k = begin[segment];
    for (; k + kAhead <= end; k += kAhead) {
      float v[kAhead][N];
#pragma unroll
      for (int j = 0; j < kAhead; j++) read_floats<N>(x + order[k + j] * cols + column, count, v[j]);
#pragma unroll
      for (int j = 0; j < kAhead; j++)
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += v[j][i];
    }
    for (; k < end; k++) {
      float v[N];
      read_floats<N>(x + order[k] * cols + column, count, v);
#pragma unroll
      for (int i = 0; i < N; i++) sum[i] += v[i];
    }
    write_floats<N>(to + target[segment] * cols + column, sum, count);
  }
};

void sum_rows(const SumRowsArgs& a) {
  dispatch(a.dtype, "sum_rows", [&]<class T>(T) {
    constexpr int N = 4;  // more threads rather than wider ones: a token that fills a batch is one long sum
    const SumRowsWalk<T> f{static_cast<const T*>(a.x), a.order, a.begin, a.target, static_cast<T*>(a.to), a.cols};
    for_rows<N>(f, a.segments, a.cols, a.cols % N == 0 && is_aligned<N>(f.x) && is_aligned<N>(f.to));
  });
}

}  // namespace

DEEM_CUDA_KERNEL("embedding", embedding);
DEEM_CUDA_KERNEL("sum_rows", sum_rows);

}  // namespace deem::cuda
