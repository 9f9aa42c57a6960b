// A tile of a product of bf16, two of which one instruction multiplies by two others: kPairRows rows, read where they lie, by the columns of a panel,
// [pair of numbers, V registers]. Sums are f32 and stay in registers over a run of pairs.
#pragma once
#include "cpu/kernels/gemm_pack.h"
#include "cpu/kernels/words.h"

#if defined(DEEM_ISA) && DEEM_ISA_INDEX >= 3
namespace deem::DEEM_ISA {

constexpr int kPairRows = 8, kMostVecs = 3;
constexpr int64_t kPairSums = kPairRows * kMostVecs * kLanes;  // of a tile, at most

// Memory that is asked for while a tile is multiplied, into the second cache: `count` places `stride` bytes apart, and, every kLanes pairs, the ones
// `step` bytes further on.
struct Next {
  const char* at = nullptr;
  int64_t count = 0, stride = 0, step = 0;
  DEEM_INLINE void ask() {
    const char* place = at;
    for (int64_t i = 0; i < count; i++, place += stride) __builtin_prefetch(place, 0, 2);
    at += step;
  }
};

struct PairTile {
  int64_t pairs;         // of this run
  bool odd;              // a number follows them in each row that has no other; the panel holds a zero for that
  const bf16* rows;      // kPairRows of them
  int64_t row_stride;    // numbers from one to the next
  int64_t step;          // numbers from one pair to the next
  const float* panel;    // its pairs of this run
  float* sums;           // of earlier runs, and for later ones
  bool first, last;      // run
  int64_t valid;         // rows, from the first on, that c has
  int64_t cols;          // of the panel, that c has
  const float* bias;     // [columns], [rows] where turned
  void* c;               // as f32, or as bf16
  int64_t c_row_stride;  // numbers
  int64_t c_size;        // bytes of a number of c, of f32 or bf16
  // c holds rows of columns: [V * kLanes, c_row_stride] numbers of bf16, where a column has room for kPairRows; all of them are written.
  bool turned;
  Next next;
};

DEEM_INLINE Vec broadcast_pair(const bf16* p) {
  typedef int32_t Any [[gnu::aligned(2), gnu::may_alias]];
  return (Vec)_mm512_set1_epi32(*(const Any*)p);
}

template <int V>
DEEM_INLINE void add_pair(Vec (&sum)[kPairRows][V], const bf16* rows, int64_t stride, const float* panel) {
  Vec x[V];
#pragma GCC unroll 3
  for (int v = 0; v < V; v++) x[v] = load_vec(panel + v * kLanes);
#pragma GCC unroll 8
  for (int m = 0; m < kPairRows; m++) {
    const Vec w = broadcast_pair(rows + m * stride);
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) sum[m][v] = add_product<Slot::pair>(sum[m][v], w, x[v]);
  }
}

// Sums below 2^-126 become zeros, as they do in the products themselves.
template <int V>
DEEM_INLINE void store_turned(const Vec (&sum)[kPairRows][V], const PairTile& t) {
#pragma GCC unroll 3
  for (int v = 0; v < V; v++) {
    Vec r[kPairRows / 2];
#pragma GCC unroll 4
    for (int p = 0; p < kPairRows / 2; p++) {
      Vec even = sum[2 * p][v], odd = sum[2 * p + 1][v];
      if (t.bias) even += t.bias[2 * p], odd += t.bias[2 * p + 1];
      r[p] = (Vec)round_small_to_zero(even, odd);
    }
    interleave_vectors(r);
    bf16* c = (bf16*)t.c + v * kLanes * t.c_row_stride;
#pragma GCC unroll 4
    for (int p = 0; p < kPairRows / 2; p++, c += 4 * t.c_row_stride) {
      const __m512i columns = (__m512i)r[p];
      _mm_storeu_si128((__m128i_u*)c, _mm512_castsi512_si128(columns));
      _mm_storeu_si128((__m128i_u*)(c + t.c_row_stride), _mm512_extracti32x4_epi32(columns, 1));
      _mm_storeu_si128((__m128i_u*)(c + 2 * t.c_row_stride), _mm512_extracti32x4_epi32(columns, 2));
      _mm_storeu_si128((__m128i_u*)(c + 3 * t.c_row_stride), _mm512_extracti32x4_epi32(columns, 3));
    }
  }
}

template <int V>
DEEM_INLINE void store_rows(const Vec (&sum)[kPairRows][V], const PairTile& t) {
  if (t.c_size == 2 && t.valid == kPairRows && t.cols >= V * kLanes) {
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) {
      const Vec bias = t.bias ? load_vec(t.bias + v * kLanes) : Vec{};
      bf16* c = (bf16*)t.c + v * kLanes;
#pragma GCC unroll 8
      for (int m = 0; m < kPairRows; m++, c += t.c_row_stride)
        _mm256_storeu_si256((__m256i_u*)c, (__m256i)_mm512_cvtneps_pbh((__m512)(sum[m][v] + bias)));
    }
    return;
  }
#pragma GCC unroll 3
  for (int v = 0; v < V; v++) {
    const __mmask16 there = __mmask16((1u << max<int64_t>(0, min(kLanes, t.cols - v * kLanes))) - 1);
    const Vec bias = t.bias ? load_vec(t.bias + v * kLanes) : Vec{};
#pragma GCC unroll 8
    for (int m = 0; m < kPairRows; m++) {
      if (m >= t.valid) continue;
      const __m512 y = (__m512)(sum[m][v] + bias);
      const int64_t at = m * t.c_row_stride + v * kLanes;
      if (t.c_size == 4) _mm512_mask_storeu_ps((float*)t.c + at, there, y);
      else _mm256_mask_storeu_epi16((bf16*)t.c + at, there, (__m256i)_mm512_cvtneps_pbh(y));
    }
  }
}

// With one register of columns, every other pair has sums of its own: a sum would wait for itself.
template <int V>
static void pair_tile(const PairTile& t) {
  constexpr int kChains = V == 1 ? 2 : 1;
  Vec sums[kChains][kPairRows][V];
#pragma GCC unroll 2
  for (int c = 0; c < kChains; c++)
#pragma GCC unroll 8
    for (int m = 0; m < kPairRows; m++)
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) sums[c][m][v] = Vec{};
  auto& sum = sums[0];
  const bf16* rows = t.rows;
  const float* panel = t.panel;
  const int64_t stride = t.row_stride, step = t.step;
  Next next = t.next;
  for (int64_t left = t.pairs, run; left > 0; left -= run) {
    next.ask();
    run = min(left, kLanes);
    const bf16* end = rows + run / kChains * kChains * step;
    for (; rows != end; rows += kChains * step, panel += kChains * V * kLanes)
#pragma GCC unroll 2
      for (int c = 0; c < kChains; c++) add_pair<V>(sums[c], rows + c * step, stride, panel + c * V * kLanes);
    if (kChains > 1 && run % kChains != 0) {
      add_pair<V>(sum, rows, stride, panel);
      rows += step, panel += V * kLanes;
    }
  }
  if (t.odd) {
    bf16 lonely[kPairRows][2] = {};
    for (int m = 0; m < kPairRows; m++) lonely[m][0] = rows[m * stride];
    add_pair<V>(sum, lonely[0], 2, panel);
  }
#pragma GCC unroll 2
  for (int c = 1; c < kChains; c++)
#pragma GCC unroll 8
    for (int m = 0; m < kPairRows; m++)
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) sum[m][v] += sums[c][m][v];
  if (!t.first)
#pragma GCC unroll 8
    for (int m = 0; m < kPairRows; m++)
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) sum[m][v] += load_vec(t.sums + (m * V + v) * kLanes);
  if (t.last) return t.turned ? store_turned<V>(sum, t) : store_rows<V>(sum, t);
#pragma GCC unroll 8
  for (int m = 0; m < kPairRows; m++)
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) store_vec(t.sums + (m * V + v) * kLanes, sum[m][v]);
}

}  // namespace deem::DEEM_ISA
#endif
