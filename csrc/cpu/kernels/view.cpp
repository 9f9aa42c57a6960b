#include "ops/view.h"

#include <cstring>

#include "cpu/strided.h"

namespace deem::DEEM_ISA {

template <class U>
static void copy_runs(const CopyArgs& a) {
  U* y = (U*)a.y;
  const U* x = (const U*)a.x;
  const int64_t sy = a.axes.strides[0][a.axes.ndim - 1], sx = a.axes.strides[1][a.axes.ndim - 1];
  for_runs<2>(a.axes, 1, [&](const int64_t* at, int64_t n) {
    U* to = y + at[0];
    const U* from = x + at[1];
    if (sy == 1 && sx == 1) {
      if (n * int64_t(sizeof(U)) >= 64)
        memcpy(to, from, size_t(n) * sizeof(U));
      else
        for (int64_t i = 0; i < n; i++) to[i] = from[i];
    } else if (sy == 1 && sx == 0) {
      const U v = *from;
#pragma omp simd
      for (int64_t i = 0; i < n; i++) to[i] = v;
    } else {
      for (int64_t i = 0; i < n; i++) to[i * sy] = from[i * sx];
    }
  });
}

// x runs along axis k where y runs along the last one: both are walked in tiles that stay in the first cache.
template <class U>
static void copy_transposed(const CopyArgs& a, int k) {
  constexpr int64_t kTile = 256 / sizeof(U) < 64 ? 256 / sizeof(U) : 64;
  const int last = a.axes.ndim - 1;
  const int64_t *shape = a.axes.shape, *ys = a.axes.strides[0], *xs = a.axes.strides[1];
  const int64_t rows = shape[k], cols = shape[last], tiles = (rows + kTile - 1) / kTile, y_row = ys[k],
                x_col = xs[last];
  int64_t outer = 1;
  for (int d = 0; d < last; d++)
    if (d != k) outer *= shape[d];
  parallel_for(outer * tiles, kTile * cols, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % tiles * kTile, height = min(kTile, rows - first);
      U* y = (U*)a.y + first * y_row;
      const U* x = (const U*)a.x + first;
      int64_t rest = item / tiles;
      for (int d = last - 1; d >= 0; d--) {
        if (d == k) continue;
        y += rest % shape[d] * ys[d];
        x += rest % shape[d] * xs[d];
        rest /= shape[d];
      }
      for (int64_t c = 0; c < cols; c += kTile) {
        const int64_t width = min(kTile, cols - c);
        U tile[kTile * kTile];
        for (int64_t j = 0; j < width; j++)
#pragma omp simd
          for (int64_t i = 0; i < height; i++) tile[i * kTile + j] = x[(c + j) * x_col + i];
        for (int64_t i = 0; i < height; i++)
#pragma omp simd
          for (int64_t j = 0; j < width; j++) y[i * y_row + c + j] = tile[i * kTile + j];
      }
    }
  });
}

template <class U>
static void copy_as(const CopyArgs& a) {
  const int last = a.axes.ndim - 1;
  const int64_t *ys = a.axes.strides[0], *xs = a.axes.strides[1];
  if (ys[last] == 1 && xs[last] > 1)
    for (int d = last - 1; d >= 0; d--)
      if (xs[d] == 1) return copy_transposed<U>(a, d);
  copy_runs<U>(a);
}

static void copy(const CopyArgs& a) {
  switch (a.width) {
    case 1:
      return copy_as<uint8_t>(a);
    case 2:
      return copy_as<uint16_t>(a);
    case 4:
      return copy_as<uint32_t>(a);
    default:
      return copy_as<uint64_t>(a);
  }
}

static void gather_rows(const GatherRowsArgs& a) {
  parallel_for(a.count, a.row_bytes / 4 + 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      char* to = (char*)a.y + i * a.row_bytes;
      if (a.index[i] < 0)
        memset(to, 0, size_t(a.row_bytes));
      else
        memcpy(to, (const char*)a.x + a.index[i] * a.row_bytes, size_t(a.row_bytes));
    }
  });
}

// Threads share the columns, so that every sum runs in the order of the index.
static void scatter_rows(const ScatterRowsArgs& a) {
  dispatch_float(a.dtype, "gather_rows", [&]<class T>(T) {
    parallel_for(a.cols, a.count, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < a.count; r++) {
        if (a.index[r] < 0) continue;
        float* to = a.dx + a.index[r] * a.cols;
        const T* from = (const T*)a.dy + r * a.cols;
#pragma omp simd
        for (int64_t i = begin; i < end; i++) to[i] += load(from + i);
      }
    });
  });
}

static const Register r1{copy_kernel, Device::cpu, copy};
static const Register r2{gather_rows_kernel, Device::cpu, gather_rows};
static const Register r3{scatter_rows_kernel, Device::cpu, scatter_rows};

}  // namespace deem::DEEM_ISA
