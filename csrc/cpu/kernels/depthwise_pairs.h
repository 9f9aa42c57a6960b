// Depthwise sums of bf16 by instructions that multiply two pairs of numbers and add both products: rows of taps KW numbers wide, KW odd, at
// stride 1. Two rows of taps, the upper one of even index, are KW pairs as they follow each other in memory; the pair in the middle is
// the upper row's last tap and the lower row's first. No pair holds a number that is not under the taps: 0 * inf would be NaN.
#pragma once
#include "cpu/kernels/gemm_pack.h"
#include "cpu/kernels/words.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

#if DEEM_ISA_INDEX >= 3
DEEM_INLINE Vec add_products(Vec sum, Vec a, Vec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// The taps of `count` channels, `taps` numbers each, as pairs [ceil(taps / 2), kLanes]; with `back` from the last one on.
DEEM_INLINE void pack_tap_pairs(const bf16* from, int64_t taps, bool back, int64_t count, float* to) {
  const int64_t pairs = ceil_div(taps, 2);
  for (int64_t done = 0; done < pairs; done += kLanes) {
    const int64_t first =
        back ? taps - 2 * (done + kLanes) : 2 * done;  // of 2 * kLanes taps, not all of which are there
    const uint32_t before = first < 0 ? ~0u << -first : ~0u;
    const int64_t beyond = first + 2 * kLanes - taps;
    const __mmask32 there = before & (beyond > 0 ? ~0u >> beyond : ~0u);
    Vec r[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; i++)
      r[i] = (Vec)_mm512_maskz_loadu_epi16(i < count ? there : 0, from + i * taps + first);
    transpose(r);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; i++)
      if (done + i < pairs) {
        const Vec pair = back ? (Vec)_mm512_rol_epi32((__m512i)r[kLanes - 1 - i], 16) : r[i];
        store_vec(to + (done + i) * kLanes, pair);
      }
  }
}

DEEM_INLINE __m512i get_pixels(const bf16* p, Whole) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u*)p));
}
DEEM_INLINE __m512i get_pixels(const bf16* p, Part part) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16((1u << part.count) - 1), p));
}

// As pack_row of depthwise.cpp; to[i] is the pair of pixels first + i - 1 and first + i.
template <class Part>
DEEM_INLINE void pack_row_of_pairs(const bf16* row, int64_t width, int64_t step, int64_t first, int64_t count,
                                   Part part, float* to) {
  const int64_t left = min(count, max<int64_t>(0, -first)), right = max(left, min(count, width - first));
  clear(to, left * kLanes);
  __m512i before{};  // nobody asks for the pixel before the first one
  for (int64_t i = left; i < right; i++) {
    const __m512i pixel = get_pixels(row + (first + i) * step, part);
    store_vec(to + i * kLanes, (Vec)_mm512_or_si512(before, _mm512_slli_epi32(pixel, 16)));
    before = pixel;
  }
  if (right == count) return;
  store_vec(to + right * kLanes, (Vec)before);
  clear(to + (right + 1) * kLanes, (count - right - 1) * kLanes);
}

// Sums below 2^-126 become zeros, as in add_products.
DEEM_INLINE void put_rounded(bf16* y, Vec sum, Whole) {
  _mm256_storeu_si256((__m256i_u*)y, (__m256i)_mm512_cvtneps_pbh((__m512)sum));
}
DEEM_INLINE void put_rounded(bf16* y, Vec sum, Part part) {
  _mm256_mask_storeu_epi16(y, __mmask16((1u << part.count) - 1), (__m256i)_mm512_cvtneps_pbh((__m512)sum));
}

// Adds an upper row of taps, whose pairs begin at tap 0, to J results, of which the first one's inputs are in x[1] and on.
template <int J, int KW>
DEEM_INLINE void add_upper_pairs(Vec (&sum)[J], const float* x, const float* pairs) {
#pragma GCC unroll 22
  for (int i = 1; i < J + KW - 2; i++) {
    const Vec v = load_vec(x + i * kLanes);
#pragma GCC unroll 4
    for (int k = 0; k < KW / 2; k++)
      if (const int j = i - 1 - 2 * k; j >= 0 && j < J) sum[j] = add_products(sum[j], v, load_vec(pairs + k * kLanes));
  }
}
// A lower row's pairs begin at tap 1.
template <int J, int KW>
DEEM_INLINE void add_lower_pairs(Vec (&sum)[J], const float* x, const float* pairs) {
  add_upper_pairs<J, KW>(sum, x + kLanes, pairs + (KW / 2 + 1) * kLanes);
}

// Adds rows begin..end of the taps to J results. Row r of the picture is in slot r % slots of the ring, `line` numbers long; slot is that of
// row `begin`.
template <int J, int KW>
DEEM_INLINE void add_pairs(Vec (&sum)[J], const float* ring, int64_t slots, int64_t line, int64_t slot,
                           const float* pairs, int64_t begin, int64_t end) {
  constexpr bool kTwo = J < 12;  // sums of a result, as its next product waits 6 cycles, where two are begun in each
  Vec more[J] = {};
  auto& second = kTwo ? more : sum;
  const auto next = [&]() DEEM_ALWAYS {
    const float* x = ring + slot * line;
    if (++slot == slots) slot = 0;
    return x;
  };
  int64_t kh = begin;
  pairs += kh / 2 * KW * kLanes;
  if (kh % 2 == 1 && kh < end) {
    const float* lower = next();
    const Vec first = odd_of((__m512i)load_vec(pairs + KW / 2 * kLanes));
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) second[j] += odd_of((__m512i)load_vec(lower + j * kLanes)) * first;
    add_lower_pairs<J, KW>(sum, lower, pairs);
    kh++, pairs += KW * kLanes;
  }
  for (; kh + 2 <= end; kh += 2, pairs += KW * kLanes) {
    const float *upper = next(), *lower = next();
    add_upper_pairs<J, KW>(sum, upper, pairs);
    const Vec middle = load_vec(pairs + KW / 2 * kLanes);
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) {
      const __m512i last = (__m512i)load_vec(upper + (j + KW) * kLanes), first = (__m512i)load_vec(lower + j * kLanes);
      second[j] = add_products(second[j], (Vec)_mm512_mask_blend_epi16(kOdd, last, first), middle);
    }
    add_lower_pairs<J, KW>(second, lower, pairs);
  }
  if (kh < end) {
    const float* upper = next();
    add_upper_pairs<J, KW>(sum, upper, pairs);
    const Vec last = even_of((__m512i)load_vec(pairs + KW / 2 * kLanes));
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) second[j] += odd_of((__m512i)load_vec(upper + (j + KW - 1) * kLanes)) * last;
  }
  if constexpr (kTwo)
#pragma GCC unroll 16
    for (int j = 0; j < J; j++) sum[j] += more[j];
}
#endif

}  // namespace deem::DEEM_ISA
#endif
