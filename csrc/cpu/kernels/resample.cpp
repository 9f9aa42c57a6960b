#include "ops/resample.h"

#include <cstring>

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

// Few numbers side by side, no vector to fill: loops over taps around one over so few would be most of the work.
template <class T>
static void resample_narrow(const ResampleAxisArgs& a, int64_t begin, int64_t end) {
  int64_t o = begin % a.out;
  const T* x = (const T*)a.x + begin / a.out * a.in * a.inner;
  float* y = a.y + begin * a.inner;
  for (int64_t r = begin; r < end; r++, y += a.inner) {
    const int64_t first = a.begin[o], last = a.begin[o + 1];
    for (int64_t i = 0; i < a.inner; i++) {
      float sum = 0;
      for (int64_t k = first; k < last; k++) sum += a.weight[k] * load(x + a.index[k] * a.inner + i);
      y[i] = sum;
    }
    if (++o == a.out) o = 0, x += a.in * a.inner;
  }
}

template <class T>
static void resample_rows(const ResampleAxisArgs& a, int64_t begin, int64_t end) {
  if (a.inner < kLanes) return resample_narrow<T>(a, begin, end);
  for (int64_t r = begin; r < end; r++) {
    const int64_t o = r % a.out;
    const T* x = (const T*)a.x + r / a.out * a.in * a.inner;
    float* y = a.y + r * a.inner;
    for (int64_t i = 0; i < a.inner; i++) y[i] = 0;
    for (int64_t k = a.begin[o]; k < a.begin[o + 1]; k++) {
      const T* row = x + a.index[k] * a.inner;
      const float w = a.weight[k];
#pragma omp simd
      for (int64_t i = 0; i < a.inner; i++) y[i] += w * load(row + i);
    }
  }
}

static void resample_axis(const ResampleAxisArgs& a) {
  const int64_t taps = a.out ? a.begin[a.out] / a.out + 1 : 1;
  dispatch_float(a.dtype, "resample_axis", [&]<class T>(T) {
    parallel_for(a.outer * a.out, a.inner * taps * 2,
                 [&](int64_t begin, int64_t end) { resample_rows<T>(a, begin, end); });
  });
}

template <class T>
static void nearest_row(const ResizeNearestArgs& a, int64_t n, int64_t row) {
  for (int64_t column = 0; column < a.width; column++) {
    const T* x = (const T*)a.x + ((n * a.height + row) * a.width + column) * a.channels;
    for (int64_t i = a.rows[row]; i < a.rows[row + 1]; i++)
      for (int64_t j = a.columns[column]; j < a.columns[column + 1]; j++)
        memcpy((T*)a.y + ((n * a.out_height + i) * a.out_width + j) * a.channels, x, size_t(a.channels) * sizeof(T));
  }
}

template <class T>
static void nearest_row_backward(const ResizeNearestArgs& a, int64_t n, int64_t row) {
  constexpr int64_t kTile = 64;
  for (int64_t column = 0; column < a.width; column++)
    for (int64_t first = 0; first < a.channels; first += kTile) {
      int64_t channels = min(kTile, a.channels - first);
      float sum[kTile] = {};
      for (int64_t i = a.rows[row]; i < a.rows[row + 1]; i++)
        for (int64_t j = a.columns[column]; j < a.columns[column + 1]; j++) {
          const T* dy = (const T*)a.x + ((n * a.out_height + i) * a.out_width + j) * a.channels + first;
#pragma omp simd
          for (int64_t c = 0; c < channels; c++) sum[c] += load(dy + c);
        }
      T* dx = (T*)a.y + ((n * a.height + row) * a.width + column) * a.channels + first;
#pragma omp simd
      for (int64_t c = 0; c < channels; c++) store(dx + c, sum[c]);
    }
}

template <bool backward>
static void resize_nearest(const ResizeNearestArgs& a) {
  dispatch_float(a.dtype, "resize_nearest", [&]<class T>(T) {
    int64_t cost = (a.out_height * a.out_width / a.height + a.width) * a.channels;
    parallel_for(a.n * a.height, cost, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        if constexpr (backward) nearest_row_backward<T>(a, r / a.height, r % a.height);
        else nearest_row<T>(a, r / a.height, r % a.height);
      }
    });
  });
}

static const Register r1{resample_axis_kernel, Device::cpu, resample_axis};
static const Register r2{resize_nearest_kernel, Device::cpu, resize_nearest<false>};
static const Register r3{resize_nearest_backward_kernel, Device::cpu, resize_nearest<true>};

}  // namespace deem::DEEM_ISA
