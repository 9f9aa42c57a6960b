// gelu of bf16 by registers of 32: x * Phi(x), with Phi(x) as 2^L(x). L = log2 Phi is smooth from where Phi leaves the floats to where x * Phi(x)
// is x, so that all numbers take the same way. Intervals 37/32 wide around 0 have a cubic each, found in a table by a rounded quotient;
// L becomes a whole number of 2^-23ths, whose upper bits are the exponent of 2^L, and whose lower ones the number in [1, 2) that a polynomial
// makes the rest of.
//
// Both are minimax fits by linear programming (SciPy's linprog) on Chebyshev points, of L from 40 digits (mpmath.ncdf): L to 1.45e-4 (in
// the interval around 2.3; below -1.7 to 2.7e-5), 2^(m - 1) to 2.6e-6 of itself. Phi is right to 1.1e-4 of itself, and one in a hundred
// results with |x| > 2^-10 rounds to the other neighbour.
#pragma once
#include "cpu/kernels/words.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

#if DEEM_ISA_INDEX >= 3
// 2^23 * (L(x) + 159) = sum over k of kLogCdf[k][n & 15] * x^k, where n = -11..3 is the number nearest to x * 32 / 37. 159 is 127, the exponent's bias,
// and 32, which the exponents of the left tail need. n = -12 is all zeros, for Phi = 0. f32 holds L to 2e-5 that way: powers of x need no number
// relative to the interval.
alignas(64) constexpr float kLogCdf[4][16] = {
    {1.3253993e+09f, 1.3253969e+09f, 1.3274196e+09f, 1.3323725e+09f, 0.0f, 1.313382e+09f, 1.3143974e+09f,
     1.3154822e+09f, 1.3166647e+09f, 1.3179346e+09f, 1.319298e+09f, 1.3207438e+09f, 1.3222307e+09f, 1.3236511e+09f,
     1.3247862e+09f, 1.3253444e+09f},
    {9656203.0f, 9698097.0f, 6449571.0f, 1110020.4f, 0.0f, 2746979.0f, 2998467.5f, 3295409.5f, 3657328.2f, 4098279.0f,
     4645042.5f, 5331231.5f, 6195535.0f, 7260063.0f, 8454414.0f, 9426726.0f},
    {-3833195.0f, -3975825.5f, -2220485.0f, -290916.44f, 0.0f, -5945158.5f, -5924389.0f, -5897281.5f, -5860335.0f,
     -5809261.5f, -5736098.5f, -5627389.0f, -5459576.0f, -5192724.5f, -4770921.0f, -4195289.0f},
    {439395.5f, 578757.2f, 259071.34f, 25475.104f, 0.0f, 1829.9109f, 2401.8884f, 3227.138f, 4485.0923f, 6458.3857f,
     9724.918f, 15473.473f, 26356.275f, 48728.438f, 98710.32f, 214440.3f}};

// Replaces 32 numbers in each of N registers. What is done to all of them at once hides how long each step takes.
template <int N>
DEEM_INLINE void gelu_words(__m512i (&words)[N], const __m512 (&table)[4]) {
  constexpr int16_t kLeft = int16_t(0xc160),
                    kRight = 0x4080;  // -14, in interval -12, and 4, from where on x * Phi(x) rounds to x
  const __m512 unit =
      _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: the lowest bits of a sum are the other number, rounded
  const __m512 scale = _mm512_set1_ps(0.864864865f);
  const __m512i exponents = _mm512_set1_epi32(0x7f800000);
  const __m512i fraction = _mm512_set1_epi32(0x007fffff), one = _mm512_set1_epi32(0x3f800000);
  __m512 x[2 * N], r[2 * N], l[2 * N], p[2 * N];  // numbers of even index, then those of odd index
  __m512i n[2 * N];
#define DEEM_EACH _Pragma("GCC unroll 8") for (int k = 0; k < 2 * N; k++)
#pragma GCC unroll 4
  for (int k = 0; k < N; k++) {
    // As whole numbers with a sign, the positive ones are in order; without one, the negative ones, from -0 down. NaN is clamped too.
    const __m512i within =
        _mm512_min_epu16(_mm512_min_epi16(words[k], _mm512_set1_epi16(kRight)), _mm512_set1_epi16(kLeft));
    x[2 * k] = (__m512)even_of(within), x[2 * k + 1] = (__m512)odd_of(within);
  }
  DEEM_EACH p[k] = _mm512_fmadd_ps(x[k], scale, unit);
  DEEM_EACH n[k] = _mm512_castps_si512(p[k]);
  DEEM_EACH l[k] = _mm512_permutexvar_ps(n[k], table[3]);
  DEEM_EACH l[k] = _mm512_fmadd_ps(l[k], x[k], _mm512_permutexvar_ps(n[k], table[2]));
  DEEM_EACH l[k] = _mm512_fmadd_ps(l[k], x[k], _mm512_permutexvar_ps(n[k], table[1]));
  DEEM_EACH l[k] = _mm512_fmadd_ps(l[k], x[k], _mm512_permutexvar_ps(n[k], table[0]));
  DEEM_EACH n[k] = _mm512_cvtps_epi32(l[k]);
  constexpr int kAndOr = 0xea;  // (a & b) | c
  DEEM_EACH r[k] = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(n[k], fraction, one, kAndOr));
  // 2^(m - 1 - 32)
  DEEM_EACH p[k] = _mm512_fmadd_ps(_mm512_set1_ps(3.15091425e-12f), r[k], _mm512_set1_ps(-4.93201525e-13f));
  DEEM_EACH p[k] = _mm512_fmadd_ps(p[k], r[k], _mm512_set1_ps(3.8788979e-11f));
  DEEM_EACH p[k] = _mm512_fmadd_ps(p[k], r[k], _mm512_set1_ps(7.26505982e-11f));
  DEEM_EACH p[k] = _mm512_fmadd_ps(p[k], r[k], _mm512_set1_ps(1.18733956e-10f));
  DEEM_EACH p[k] = _mm512_mul_ps(p[k], _mm512_castsi512_ps(_mm512_and_si512(n[k], exponents)));
#undef DEEM_EACH
#pragma GCC unroll 4
  for (int k = 0; k < N; k++)  // results below 2^-126 become zeros
    words[k] = round_small_to_zero(even_of(words[k]) * (Vec)p[2 * k], odd_of(words[k]) * (Vec)p[2 * k + 1]);
}

DEEM_INLINE void bf16_gelu_row(const bf16* x, bf16* y, int64_t n) {
  constexpr int kAtOnce = 4;  // registers
  __m512 table[4];
  for (int k = 0; k < 4; k++) table[k] = _mm512_load_ps(kLogCdf[k]);
  int64_t i = 0;
  for (; i + kAtOnce * kWords <= n; i += kAtOnce * kWords) {
    __m512i words[kAtOnce];
    for (int k = 0; k < kAtOnce; k++) words[k] = get_words(x + i + k * kWords, Whole{});
    gelu_words(words, table);
    for (int k = 0; k < kAtOnce; k++) put_words(y + i + k * kWords, words[k], Whole{});
  }
  for (; i < n; i += kWords) {
    const Part part{min(kWords, n - i)};
    __m512i words[1] = {get_words(x + i, part)};
    gelu_words(words, table);
    put_words(y + i, words[0], part);
  }
}
#endif

}  // namespace deem::DEEM_ISA
#endif
