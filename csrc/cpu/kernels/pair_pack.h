// How operands of a product of bf16 become panels of pairs (cpu/kernels/pair_tile.h).
#pragma once
#include "cpu/kernels/pair_tile.h"

#if defined(DEEM_ISA) && DEEM_ISA_INDEX >= 3
namespace deem::DEEM_ISA {

// Numbers 2p and 2p + 1 of kLanes lines that lie across: of row 2p and the one after it, which the last one may lack.
DEEM_INLINE Vec pairs_across(const bf16* row, int64_t stride, bool both, __mmask16 lines) {
  const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lines, row));
  if (!both) return (Vec)even;
  const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lines, row + stride));
  return (Vec)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

// Lines first..first + count, at most kLanes, of numbers that lie in lines, as columns [(k + 1) / 2] of pairs, `width` pairs apart. Those that are
// not there, and the last one's second number, are zeros.
static void pack_lines_of_pairs(const PackSource& s, int64_t first, int64_t count, int64_t k, float* to,
                                int64_t width) {
  const int64_t pairs = ceil_div(k, 2);
  for (int64_t p = 0; p < pairs; p += kLanes) {
    const bf16* line = (const bf16*)s.data + first * s.stride + 2 * p;
    const __mmask32 numbers = first_of(k - 2 * p);
    // A few cache lines further along these lines, or along the next ones.
    constexpr int64_t kAhead = 4 * 2 * kLanes;
    const int64_t next = 2 * p + kAhead < k ? kAhead : kLanes * s.stride + kAhead - k;
    Vec r[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++, line += s.stride) {
      __builtin_prefetch(line + next);
      r[i] = (Vec)_mm512_maskz_loadu_epi16(i < count ? numbers : 0, line);
    }
    transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++)
      if (p + i < pairs) store_vec(to + (p + i) * width, r[i]);
  }
}

// The same of up to `vecs` * kLanes lines that lie across, whose columns are side by side.
static void pack_pairs_across(const PackSource& s, int64_t first, int64_t count, int64_t k, int64_t vecs, float* to) {
  constexpr int64_t kAhead = 16;  // rows; they lie far apart, where the hardware does not look ahead
  const bf16* row = (const bf16*)s.data + first;
  for (int64_t p = 0; 2 * p < k; p++, row += 2 * s.stride)
    for (int64_t v = 0; v < vecs; v++) {
      if (v % 2 == 0) {
        __builtin_prefetch(row + kAhead * s.stride + v * kLanes);
        __builtin_prefetch(row + (kAhead + 1) * s.stride + v * kLanes);
      }
      const __mmask16 lines = __mmask16(first_of(max<int64_t>(0, min(kLanes, count - v * kLanes))));
      store_vec(to + (p * vecs + v) * kLanes, pairs_across(row + v * kLanes, s.stride, 2 * p + 1 < k, lines));
    }
}

// `count` lines as they lie, at most kPairRows, and zeros for the rest.
static void copy_lines_of_pairs(const PackSource& s, int64_t first, int64_t count, int64_t k, float* to,
                                int64_t stride) {
  for (int64_t i = 0; i < kPairRows; i++)
    for (int64_t p = 0; p < k; p += 2 * kLanes) {
      const __mmask32 numbers = i < count ? first_of(k - p) : 0;
      const Vec v = (Vec)_mm512_maskz_loadu_epi16(numbers, (const bf16*)s.data + (first + i) * s.stride + p);
      store_part(to + i * stride + p / 2, v, min(kLanes, ceil_div(k - p, 2)));
    }
}

}  // namespace deem::DEEM_ISA
#endif
