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
// of blocks of kLanes numbers; the last block is whole too.
enum class Rows { by_number, by_line };

DEEM_INLINE Vec broadcast(const float* p) {
#if DEEM_ISA_INDEX >= 2
  return (Vec)_mm512_set1_ps(*p);
#elif DEEM_ISA_INDEX == 1
  return (Vec)_mm256_broadcast_ss(p);
#else
  return (Vec)_mm_set1_ps(*p);
#endif
}

// to[M, V * kLanes] = start + a b over `depth`; start is null for zeros. V is kVecs, or less where a panel of b is not full. Sums begin at zero
// and are added to `start` at the end: long sums round less in runs.
template <int M, Rows R, int V>
static void tile(int64_t depth, const float* a, const float* b, const float* start, int64_t start_stride, float* to,
                 int64_t stride) {
  constexpr int64_t kAhead = 16;  // numbers of each line; both panels come from the second-level cache
  constexpr int64_t kRun = R == Rows::by_line ? kLanes : 1;
  Vec sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) sum[m][v] = Vec{};
  if (start)
    for (int m = 0; m < M; m++)
      for (int i = 0; i < V * kLanes; i += 16) __builtin_prefetch(start + m * start_stride + i);
  for (int64_t p = 0; p < depth; p += kRun, a += R == Rows::by_line ? kRows * kLanes : kRowSpan) {
    const int64_t run = kRun == 1 ? 1 : min(kRun, depth - p);
    for (int64_t i = 0; i < run; i++, b += kCols) {
      Vec x[V];
      for (int v = 0; v < V; v++) {
        x[v] = load_vec(b + v * kLanes);
        if (v * kLanes % 16 == 0) __builtin_prefetch(b + kAhead * kCols + v * kLanes);  // once a cache line
      }
      if (R == Rows::by_line) __builtin_prefetch(a + kAhead * kRows + i * kRows);
      else __builtin_prefetch(a + kAhead * kRowSpan);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        const Vec w = broadcast(a + (R == Rows::by_line ? m * kLanes + i : m));
        for (int v = 0; v < V; v++) sum[m][v] += w * x[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) {
      if (start) sum[m][v] += load_vec(start + m * start_stride + v * kLanes);
      store_vec(to + m * stride + v * kLanes, sum[m][v]);
    }
}

using Tile = void (*)(int64_t, const float*, const float*, const float*, int64_t, float*, int64_t);
// static: its address is taken, which DEEM_INLINE alone would make a shared symbol of.
template <Rows R, int M = kRows>
[[gnu::always_inline]] static inline Tile tile_of(int64_t rows, int64_t cols) {
  if constexpr (M > 1)
    if (rows < M) return tile_of<R, M - 1>(rows, cols);
  return cols > kLanes ? tile<M, R, kVecs> : tile<M, R, 1>;
}

}  // namespace deem::DEEM_ISA
#endif
