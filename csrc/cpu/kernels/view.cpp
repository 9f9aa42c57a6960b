#include "ops/view.h"

#include <cstring>

#include "cpu/stream.h"
#include "cpu/strided.h"

namespace deem::DEEM_ISA {

// Calls of memcpy take longer than short runs.
DEEM_INLINE void copy_run(void* to, const void* from, int64_t bytes) {
  constexpr int64_t kShort = 1024, kWidth = kLanes * 4;
  if (bytes < kWidth || bytes > kShort) {
    memcpy(to, from, size_t(bytes));
    return;
  }
  char* y = (char*)to;
  const char* x = (const char*)from;
  const Vec last = load_vec((const float*)(x + bytes - kWidth));
  for (int64_t i = 0; i + kWidth <= bytes; i += kWidth) store_vec((float*)(y + i), load_vec((const float*)(x + i)));
  store_vec((float*)(y + bytes - kWidth), last);  // over what was copied already, where bytes is no multiple
}

// A run of n numbers, `sy` and `sx` apart.
template <class U>
DEEM_INLINE void copy_numbers(U* to, int64_t sy, const U* from, int64_t sx, int64_t n) {
  if (sy == 1 && sx == 1 && n * int64_t(sizeof(U)) >= 64) {
    copy_run(to, from, n * int64_t(sizeof(U)));
  } else if (sy == 1 && sx == 1) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
  } else if (sy == 1 && sx == 0) {
    const U v = *from;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = v;
  } else {
    for (int64_t i = 0; i < n; i++) to[i * sy] = from[i * sx];
  }
}

template <class U>
static void copy_runs(const CopyArgs& a) {
  const int last = a.axes.ndim - 1;
  const int64_t *shape = a.axes.shape, *xs = a.axes.strides[1], sy = a.axes.strides[0][last], sx = xs[last];
  // Short runs that lie apart are asked for some runs ahead, those of the next stack too: the hardware does not look that far. Runs a
  // power of two apart share a set of a cache, so few of them may wait.
  constexpr int64_t kLine = 64 / int64_t(sizeof(U)), kShort = 16 * kLine, kFewRows = 64;
  const bool asks = last > 0 && sx == 1 && shape[last] <= kShort;
  const int64_t next_stack = last > 1 ? xs[last - 2] : 0;
  for_stacks(a.axes, 1, [&](const int64_t(&at)[2], int64_t rows, const int64_t(&steps)[2], int64_t n) {
    const int64_t ahead = rows < kFewRows ? 8 : 32, beyond = (ahead - rows) * steps[1] + next_stack;
    U* to = (U*)a.y + at[0];
    const U* from = (const U*)a.x + at[1];
    for (int64_t r = 0; r < rows; r++, to += steps[0], from += steps[1]) {
      if (asks) {
        const U* then = from + (r + ahead < rows ? ahead * steps[1] : beyond);
        for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(then + i);
      }
      copy_numbers(to, sy, from, sx, n);
    }
  });
}

// The axes with the longest steps first: the runs of an inner one then lie close to each other, in x or in y.
static Strided<2> longest_outside(Strided<2> s) {
  auto step = [&](int d) { return max(s.strides[0][d], s.strides[1][d]); };
  auto swap = [](int64_t& a, int64_t& b) {
    const int64_t c = a;
    a = b, b = c;
  };
  for (int i = 1; i < s.ndim - 1; i++)
    for (int d = i; d > 0 && step(d - 1) < step(d); d--) {
      swap(s.shape[d - 1], s.shape[d]);
      for (auto& strides : s.strides) swap(strides[d - 1], strides[d]);
    }
  return s;
}

// The rows of the innermost stacks cut into tiles, where results lie further apart than what they are copied from: of all rows at once the lines
// would leave the caches one by one, from all over y.
static Strided<2> tiled(Strided<2> s) {
  constexpr int64_t kMostRows = 256, kFewestRows = 64;
  const int rows = s.ndim - 2;
  if (rows < 1 || s.ndim == kMaxDims || s.strides[0][rows] <= s.strides[1][rows]) return s;
  const int64_t height = min(kMostRows, s.shape[rows] & -s.shape[rows]);
  if (height < kFewestRows || height == s.shape[rows]) return s;
  for (int d = s.ndim++; d >= rows; d--) {
    s.shape[d] = s.shape[d - 1];
    for (auto& strides : s.strides) strides[d] = strides[d - 1];
  }
  s.shape[rows - 1] = s.shape[rows + 1] / height;
  for (auto& strides : s.strides) strides[rows - 1] = strides[rows + 1] * height;
  s.shape[rows + 1] = height;
  return s;
}

// Whether the runs are short and fill whole lines of a cache, as heads of attention do. Runs that shared a line would be written by two threads
// at once, and of runs a power of two apart a cache holds too few.
template <class U>
static bool short_lines(const Strided<2>& s) {
  constexpr int64_t kLongest = 1024, kSharesSets = 2048;
  const int last = s.ndim - 1;
  if (last == 0 || s.strides[0][last] != 1 || s.strides[1][last] != 1) return false;
  auto bytes = [](int64_t numbers) { return numbers * int64_t(sizeof(U)); };
  const int64_t run = bytes(s.shape[last]);
  return run <= kLongest && run % kCacheLine == 0 && bytes(s.strides[0][last - 1]) % kSharesSets != 0 &&
         bytes(s.strides[1][last - 1]) % kSharesSets != 0;
}

template <class U>
static void copy_short_lines(const CopyArgs& a, const Strided<2>& axes) {
  const int last = axes.ndim - 1;
  int64_t numbers = 1, next_stack[2] = {};
  for (int d = 0; d <= last; d++) numbers *= axes.shape[d];
  for (int k = 0; k < 2 && last > 1; k++) next_stack[k] = axes.strides[k][last - 2];
  const bool streamed = is_streamed<U>(numbers);
  const bool apart = !streamed && axes.strides[0][last - 1] > axes.strides[1][last - 1];
  // What comes is asked for, of the next stack too: the hardware does not look that far.
  constexpr int64_t kAhead = 32, kLine = kCacheLine / int64_t(sizeof(U));
  for_stacks(axes, 1, [&](const int64_t(&at)[2], int64_t rows, const int64_t(&steps)[2], int64_t n) {
    U* to = (U*)a.y + at[0];
    const U* from = (const U*)a.x + at[1];
    for (int64_t r = 0; r < rows; r++, to += steps[0], from += steps[1]) {
      const bool within = r + kAhead < rows;
      auto ahead = [&](int k) { return within ? kAhead * steps[k] : (kAhead - rows) * steps[k] + next_stack[k]; };
      const U *then = from + ahead(1), *then_to = to + ahead(0);
      for (int64_t i = 0; i < n; i += kLine) {
        __builtin_prefetch(then + i);
        if (apart) __builtin_prefetch(then_to + i, 1);
      }
      if (streamed) copy_past_caches((char*)to, (const char*)from, n * int64_t(sizeof(U)));
      else copy_run(to, from, n * int64_t(sizeof(U)));
    }
    if (streamed) _mm_sfence();
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
  const Strided<2> axes = longest_outside(a.axes);
  if (short_lines<U>(axes)) copy_short_lines<U>(a, tiled(axes));
  else copy_runs<U>(a);
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
  // As much is read as is written: of two arrays, a cache keeps larger results than of three. 16 MB take 331 instead of 389 us on Zen 5.
  const bool streamed = is_streamed<char>(a.count * a.row_bytes / 2);
  parallel_for(a.count, a.row_bytes / 4 + 4, [&](int64_t begin, int64_t end) {
    copy_rows(streamed, [&](auto&& copy) DEEM_ALWAYS {
      for (int64_t i = begin; i < end; i++) {
        char* to = (char*)a.y + i * a.row_bytes;
        if (a.index[i] < 0) memset(to, 0, size_t(a.row_bytes));
        else copy(to, (const char*)a.x + a.index[i] * a.row_bytes, a.row_bytes);
      }
    });
  });
}

static const Register r1{copy_kernel, Device::cpu, copy};
static const Register r2{gather_rows_kernel, Device::cpu, gather_rows};

}  // namespace deem::DEEM_ISA
