// A tile of a product: as many sums as the registers hold.
#pragma once
#include "cpu/simd.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// 14 x 32 of AVX-512's registers, 6 x 16 of AVX2's, 6 x 8 of SSE's.
constexpr int kVecs = 2, kCols = kVecs * kLanes, kRows = kLanes == 16 ? 14 : 6;
constexpr int kTile = kRows * kCols;
// Numbers that a panel of a takes for each of a line: made of whole vectors where it is [number, line].
constexpr int kRowSpan = (kRows + kLanes - 1) / kLanes * kLanes;

// Panels of b are [number, kCols]. Those of a are [number, kRowSpan], or, where lines are copied as they lie, [block, kRows, kLanes]
// of blocks of kLanes numbers; the last block is whole too; or they are Stretches.
enum class Rows { by_number, by_line, in_place };

// A panel of a whose lines are read where they lie: `length` numbers from each of its addresses on, then those of the next Stretch.
struct Stretch {
  int64_t length;
  const float* line[kRows];
};

// What lies in the place of a float of both panels: a float, or two bf16, of which the second has the high half; products of pairs are
// summed in f32.
enum class Slot { number, pair };
template <Slot S>
constexpr int kPerSlot = S == Slot::pair ? 2 : 1;

// Numbers of each line that are asked for ahead, and that a turn of the inner loop takes: two with the 12 products of AVX2, where a loop's
// own instructions are a fifth of all, and what a neighbour on the same core leaves is shared by all of them.
constexpr int64_t kAhead = 16;
constexpr int kAtOnce = kLanes == 16 ? 1 : 2;

DEEM_INLINE Vec broadcast(const float* p) {
#if DEEM_ISA_INDEX >= 2
  return (Vec)_mm512_set1_ps(*p);
#elif DEEM_ISA_INDEX == 1
  return (Vec)_mm256_broadcast_ss(p);
#else
  return (Vec)_mm_set1_ps(*p);
#endif
}

template <Slot S>
DEEM_INLINE Vec add_product(Vec sum, Vec a, Vec b) {
#if DEEM_ISA_INDEX >= 3
  if constexpr (S == Slot::pair) return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  static_assert(S == Slot::number);
#endif
  return sum + a * b;
}

// Adds to sum[M][V] what N numbers give: N rows of a panel of b, and of a panel of a `step` floats from one to the next, of whose lines one
// follows the other by `line`.
template <Slot S, int M, int V, int N>
DEEM_INLINE void add_numbers(Vec (&sum)[M][V], const float* a, int64_t step, int64_t line, const float* b) {
#pragma GCC unroll 16
  for (int i = 0; i < N; i++) {
    Vec x[V];
    for (int v = 0; v < V; v++) {
      x[v] = load_vec(b + i * kCols + v * kLanes);
      if (v * kLanes % 16 == 0) __builtin_prefetch(b + (kAhead + i) * kCols + v * kLanes);  // once a cache line
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const Vec w = broadcast(a + i * step + m * line);
      for (int v = 0; v < V; v++) sum[m][v] = add_product<S>(sum[m][v], w, x[v]);
    }
  }
}

// The same of a stretch of lines where they lie; returns the row of b that follows.
template <Slot S, int M, int V>
DEEM_INLINE const float* add_stretch(Vec (&sum)[M][V], const Stretch& s, const float* b) {
  const float* line[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) line[m] = s.line[m];
  for (int64_t i = 0; i < s.length; i++, b += kCols) {
    Vec x[V];
    for (int v = 0; v < V; v++) {
      x[v] = load_vec(b + v * kLanes);
      if (v * kLanes % 16 == 0) __builtin_prefetch(b + kAhead * kCols + v * kLanes);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const Vec w = broadcast(line[m] + i);
      for (int v = 0; v < V; v++) sum[m][v] = add_product<S>(sum[m][v], w, x[v]);
    }
  }
  return b;
}

// to[M, V * kLanes] = start + a b over `depth`; start is null for zeros. V is kVecs, or less where a panel of b is not full. Sums begin at zero
// and are added to `start` at the end: long sums round less in runs.
template <int M, Rows R, int V, Slot S>
static void tile(int64_t depth, const float* a, const float* b, const float* start, int64_t start_stride, float* to,
                 int64_t stride) {
  constexpr int64_t step = R == Rows::by_line ? 1 : kRowSpan, line = R == Rows::by_line ? kLanes : 1,
                    span = R == Rows::by_line ? kRows : kRowSpan;
  Vec sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) sum[m][v] = Vec{};
  for (int m = 0; m < M; m++)
    for (int i = 0; i < V * kLanes; i += 16) {
      if (start) __builtin_prefetch(start + m * start_stride + i);
      __builtin_prefetch(to + m * stride + i, 1);
    }
  if constexpr (R == Rows::in_place) {
    for (auto s = (const Stretch*)a; depth > 0; depth -= s->length, s++) b = add_stretch<S>(sum, *s, b);
  }
  // Blocks of kLanes numbers, whose last one may be cut short.
  for (; depth >= kLanes; depth -= kLanes, a += R == Rows::by_line ? (kRows - 1) * kLanes : 0) {
    const float *end = a + kLanes * step, *ahead = a + kAhead * span;
    do {
      if constexpr (kLanes == 16) __builtin_prefetch(ahead), ahead += span;
      add_numbers<S, M, V, kAtOnce>(sum, a, step, line, b);
      a += kAtOnce * step, b += kAtOnce * kCols;
    } while (a != end);
  }
  for (; depth > 0; depth--, a += step, b += kCols) add_numbers<S, M, V, 1>(sum, a, step, line, b);
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) {
      if (start) sum[m][v] += load_vec(start + m * start_stride + v * kLanes);
      store_vec(to + m * stride + v * kLanes, sum[m][v]);
    }
}

using Tile = void (*)(int64_t, const float*, const float*, const float*, int64_t, float*, int64_t);
// static: its address is taken, which DEEM_INLINE alone would make a shared symbol of.
template <Rows R, Slot S = Slot::number, int M = kRows>
[[gnu::always_inline]] static inline Tile tile_of(int64_t rows, int64_t cols) {
  if constexpr (M > 1)
    if (rows < M) return tile_of<R, S, M - 1>(rows, cols);
  return cols > kLanes ? tile<M, R, kVecs, S> : tile<M, R, 1, S>;
}

}  // namespace deem::DEEM_ISA
#endif
