#include "ops/view.h"

#include <cstring>

#include "cpu/strided.h"

namespace deem::DEEM_ISA {

template <class U>
static void copy_runs(const CopyArgs& a) {
  U* y = (U*)a.y;
  const U* x = (const U*)a.x;
  const int last = a.axes.ndim - 1;
  const int64_t sy = a.axes.strides[0][last], sx = a.axes.strides[1][last];
  // Short runs that lie apart are asked for some runs ahead: the hardware does not look that far.
  constexpr int64_t kAhead = 8, kLine = 64 / int64_t(sizeof(U)), kShort = 16 * kLine;
  const int64_t ahead = last > 0 && a.axes.shape[last] <= kShort ? kAhead * a.axes.strides[1][last - 1] : 0;
  for_runs<2>(a.axes, 1, [&](const int64_t* at, int64_t n) {
    U* to = y + at[0];
    const U* from = x + at[1];
    if (sy == 1 && sx == 1) {
      if (ahead)
        for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(from + ahead + i);
      if (n * int64_t(sizeof(U)) >= 64) memcpy(to, from, size_t(n) * sizeof(U));
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

// y[i][j] = x[j][i] for a square of 16-byte rows: log2(n) rounds of interleaving the upper half of the rows with the lower.
template <class U>
DEEM_INLINE void transpose_square(const U* x, int64_t x_row, U* y, int64_t y_row) {
  constexpr int n = 16 / sizeof(U);
  typedef U Row __attribute__((vector_size(16)));
  Row low, high, r[n], next[n];
  for (int i = 0; i < n; i++) {
    low[i] = U(i / 2 + (i % 2) * n);
    high[i] = U(low[i] + n / 2);
    memcpy(&r[i], x + i * x_row, 16);
  }
  for (int round = 1; round < n; round *= 2) {
    for (int i = 0; i < n / 2; i++) {
      next[2 * i] = __builtin_shuffle(r[i], r[i + n / 2], low);
      next[2 * i + 1] = __builtin_shuffle(r[i], r[i + n / 2], high);
    }
    for (int i = 0; i < n; i++) r[i] = next[i];
  }
  for (int i = 0; i < n; i++) memcpy(y + i * y_row, &r[i], 16);
}

constexpr int64_t kTile = 64;

// y[i][j] = x[j][i], i < height, j < width. x is first brought together: its rows may lie a multiple of 4096 bytes apart.
template <class U>
static void transpose_tile(const U* x, int64_t x_row, U* y, int64_t y_row, int64_t height, int64_t width) {
  constexpr int64_t n = 16 / sizeof(U);
  if (height < n || width < n) {
    for (int64_t i = 0; i < height; i++)
      for (int64_t j = 0; j < width; j++) y[i * y_row + j] = x[j * x_row + i];
    return;
  }
  alignas(64) U near[kTile * kTile];
  for (int64_t j = 0; j < width; j++) memcpy(near + j * kTile, x + j * x_row, size_t(height) * sizeof(U));
  const int64_t full_height = height / n * n, full_width = width / n * n;
  for (int64_t i = 0; i < full_height; i += n)
    for (int64_t j = 0; j < full_width; j += n) transpose_square(near + j * kTile + i, kTile, y + i * y_row + j, y_row);
  for (int64_t i = 0; i < height; i++)
    for (int64_t j = i < full_height ? full_width : 0; j < width; j++) y[i * y_row + j] = near[j * kTile + i];
}

// x runs along axis k where y runs along the last one.
template <class U>
static void copy_transposed(const CopyArgs& a, int k) {
  const int last = a.axes.ndim - 1;
  const int64_t *shape = a.axes.shape, *ys = a.axes.strides[0], *xs = a.axes.strides[1];
  const int64_t rows = shape[k], cols = shape[last], row_tiles = (rows + kTile - 1) / kTile,
                col_tiles = (cols + kTile - 1) / kTile;
  int64_t outer = 1;
  for (int d = 0; d < last; d++)
    if (d != k) outer *= shape[d];
  parallel_for(outer * row_tiles * col_tiles, min(rows, kTile) * min(cols, kTile), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t c = item % col_tiles * kTile, r = item / col_tiles % row_tiles * kTile;
      U* y = (U*)a.y + r * ys[k] + c;
      const U* x = (const U*)a.x + c * xs[last] + r;
      int64_t rest = item / col_tiles / row_tiles;
      for (int d = last - 1; d >= 0; d--) {
        if (d == k) continue;
        y += rest % shape[d] * ys[d];
        x += rest % shape[d] * xs[d];
        rest /= shape[d];
      }
      transpose_tile(x, xs[last], y, ys[k], min(kTile, rows - r), min(kTile, cols - c));
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
    case 1: return copy_as<uint8_t>(a);
    case 2: return copy_as<uint16_t>(a);
    case 4: return copy_as<uint32_t>(a);
    default: return copy_as<uint64_t>(a);
  }
}

static void gather_rows(const GatherRowsArgs& a) {
  parallel_for(a.count, a.row_bytes / 4 + 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      char* to = (char*)a.y + i * a.row_bytes;
      if (a.index[i] < 0) memset(to, 0, size_t(a.row_bytes));
      else memcpy(to, (const char*)a.x + a.index[i] * a.row_bytes, size_t(a.row_bytes));
    }
  });
}

static const Register r1{copy_kernel, Device::cpu, copy};
static const Register r2{gather_rows_kernel, Device::cpu, gather_rows};

}  // namespace deem::DEEM_ISA
