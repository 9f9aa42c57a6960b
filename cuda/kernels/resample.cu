#include "ops/resample.h"

#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

// A row is an output position of one outer item; taps are added in their order.
template <class T>
struct ResampleWalk {
  const T* x;
  float* y;
  const int64_t *begin, *index;
  const float* weight;
  int64_t in, inner;
  Divider out;

  template <int N>
  __device__ void at(int64_t row, int64_t column, int count) const {
    const int64_t a = out.divide(row), o = row - a * out.d;
    const T* from = x + a * in * inner + column;
    float sum[N] = {};
    for (int64_t k = begin[o]; k < begin[o + 1]; k++) {
      float v[N];
      read_floats<N>(from + index[k] * inner, count, v);
      const float w = weight[k];
#pragma unroll
      for (int i = 0; i < N; i++) sum[i] = fmaf(w, v[i], sum[i]);
    }
    write_floats<N>(y + row * inner + column, sum, count);
  }
};

void resample_axis(const ResampleAxisArgs& a) {
  constexpr int N = 4;
  if (a.outer <= 0 || a.out <= 0) return;
  dispatch(a.dtype, "resample_axis", [&]<class T>(T) {
    const auto* x = static_cast<const T*>(a.x);
    const ResampleWalk<T> f{x, a.y, a.begin, a.index, a.weight, a.in, a.inner, Divider(a.out, a.outer * a.out)};
    for_rows<N>(f, a.outer * a.out, a.inner, a.inner % N == 0 && is_aligned<N>(x) && is_aligned<N>(a.y));
  });
}

// Rows are source positions: each is read once and shown at all of its outputs, or adds up what they got.
template <class T, bool backward>
struct NearestWalk {
  const T* x;
  T* y;
  const int64_t *rows, *columns;
  int64_t out_height, out_width, channels;
  Divider width, height;

  template <int N>
  __device__ void at(int64_t place, int64_t channel, int count) const {
    const int64_t line = width.divide(place), column = place - line * width.d, n = height.divide(line),
                  row = line - n * height.d;
    const int64_t source = place * channels + channel, top = rows[row], bottom = rows[row + 1], left = columns[column],
                  right = columns[column + 1];
    if constexpr (backward) {
      float sum[N] = {};
      for (int64_t i = top; i < bottom; i++)
        for (int64_t j = left; j < right; j++) {
          float v[N];
          read_floats<N>(x + ((n * out_height + i) * out_width + j) * channels + channel, count, v);
#pragma unroll
          for (int k = 0; k < N; k++) sum[k] += v[k];
        }
      write_floats<N>(y + source, sum, count);
    } else {
      const Vec<T, N> v = read_pack<N>(x + source, count);
      for (int64_t i = top; i < bottom; i++)
        for (int64_t j = left; j < right; j++)
          write_pack<N>(y + ((n * out_height + i) * out_width + j) * channels + channel, v, count);
    }
  }
};

template <bool backward>
void resize_nearest(const ResizeNearestArgs& a) {
  const int64_t places = a.n * a.height * a.width;
  if (places <= 0) return;
  dispatch(a.dtype, "resize_nearest", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const NearestWalk<T, backward> f{
        static_cast<const T*>(a.x), static_cast<T*>(a.y),     a.rows, a.columns, a.out_height, a.out_width, a.channels,
        Divider(a.width, places),   Divider(a.height, places)};
    for_rows<N>(f, places, a.channels, a.channels % N == 0 && is_aligned<N>(f.x) && is_aligned<N>(f.y));
  });
}

}  // namespace

DEEM_CUDA_KERNEL("resample_axis", resample_axis);
DEEM_CUDA_KERNEL("resize_nearest", resize_nearest<false>);
DEEM_CUDA_KERNEL("resize_nearest_backward", resize_nearest<true>);

}  // namespace deem::cuda
