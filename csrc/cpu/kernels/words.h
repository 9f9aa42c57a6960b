// Registers of 32 numbers of bf16, two a lane, as floats: those of even index and those of odd index, which costs one cheap operation for sixteen,
// where to widen neighbours costs two.
#pragma once
#include "cpu/row.h"

#if defined(DEEM_ISA) && DEEM_ISA_INDEX >= 3
namespace deem::DEEM_ISA {

constexpr int64_t kWords = 2 * kLanes;
constexpr __mmask32 kOdd = 0xaaaaaaaa;

// Which of up to 32 numbers are there.
DEEM_INLINE __mmask32 first_of(int64_t count) { return count >= kWords ? ~__mmask32(0) : (__mmask32(1) << count) - 1; }
DEEM_INLINE __m512i get_words(const bf16* p, Whole) { return _mm512_loadu_si512(p); }
DEEM_INLINE __m512i get_words(const bf16* p, Part part) { return _mm512_maskz_loadu_epi16(first_of(part.count), p); }
DEEM_INLINE void put_words(bf16* p, __m512i words, Whole) { _mm512_storeu_si512(p, words); }
DEEM_INLINE void put_words(bf16* p, __m512i words, Part part) {
  _mm512_mask_storeu_epi16(p, first_of(part.count), words);
}

DEEM_INLINE Vec even_of(__m512i words) { return (Vec)_mm512_slli_epi32(words, 16); }
DEEM_INLINE Vec odd_of(__m512i words) { return (Vec)_mm512_maskz_mov_epi16(kOdd, words); }

// Zeros where the row has ended: of the numbers of even and of odd index.
DEEM_INLINE Vec within_even(Vec v, Whole) { return v; }
DEEM_INLINE Vec within_odd(Vec v, Whole) { return v; }
DEEM_INLINE Vec within_even(Vec v, Part part) {
  return (Vec)_mm512_maskz_mov_ps(__mmask16(first_of((part.count + 1) / 2)), (__m512)v);
}
DEEM_INLINE Vec within_odd(Vec v, Part part) {
  return (Vec)_mm512_maskz_mov_ps(__mmask16(first_of(part.count / 2)), (__m512)v);
}

// As for_row, by registers of words; k is 0 or 1.
template <class F>
DEEM_INLINE void for_words(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + 2 * kWords <= n; i += 2 * kWords) {
    f(i, 0, Whole{});
    f(i + kWords, 1, Whole{});
  }
  if (i + kWords <= n) f(i, 0, Whole{}), i += kWords;
  if (i < n) f(i, 1, Part{n - i});
}

// One after the other from each: e0 o0 e1 o1 ... Numbers below 2^-126 become zeros.
DEEM_INLINE __m512i round_small_to_zero(Vec even, Vec odd) {
  alignas(64) static constexpr int16_t kOrder[kWords] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
}

// The bits that bf16(float) gives.
DEEM_INLINE __m512i round_to_words(Vec even, Vec odd) {
  constexpr int kDenormal = 0x20;
  const __mmask16 small =
      _mm512_fpclass_ps_mask((__m512)even, kDenormal) | _mm512_fpclass_ps_mask((__m512)odd, kDenormal);
  if (__builtin_expect(small == 0, 1)) return round_small_to_zero(even, odd);
  alignas(32) bf16 first[kLanes], second[kLanes];
  store_vec(first, even);
  store_vec(second, odd);
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)first));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

}  // namespace deem::DEEM_ISA
#endif
