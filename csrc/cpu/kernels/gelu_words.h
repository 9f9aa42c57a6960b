// gelu of bf16 by registers of 32: x * Phi(x), with Phi(x) as 2^L(x). L = log2 Phi is smooth from where Phi leaves the floats to where x * Phi(x)
// is x, so that all numbers take the same way. Intervals 37/32 wide around 0 have a cubic each, found in a table by a rounded quotient;
// L becomes a whole number of 2^-23ths, whose upper bits are the exponent of 2^L, and whose lower ones the number in [1, 2) that a polynomial
// makes the rest of.
//
// Both are minimax fits by linear programming (SciPy's linprog) on Chebyshev points, of L from 40 digits (mpmath.ncdf): L to 1.45e-4 (in
// the interval around 2.3; below -1.7 to 2.7e-5), 2^(m - 1) to 2.6e-6 of itself. Phi is right to 1.1e-4 of itself, and one in a hundred
// results with |x| > 2^-10 rounds to the other neighbour.
#pragma once
#include "cpu/row.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

#if DEEM_ISA_INDEX >= 3
// 2^23 * (L(37/32 * (n + r)) + 159) = sum over k of kLogCdf[k][n & 15] * r^k for n = -11..3 and |r| <= 1/2. 159 is 127, the exponent's bias, and 32,
// which the exponents of the left tail need. n = -12 is all zeros, for Phi = 0.
alignas(64) constexpr float kLogCdf[4][16] = {
    {1.32539927e+09f, 1.33218962e+09f, 1.33366367e+09f, 1.33378573e+09f, 0.0f, 312950823.0f, 483974945.0f, 638935894.0f,
     777859731.0f, 900782153.0f, 1.00775376e+09f, 1.0988493e+09f, 1.17418509e+09f, 1.23395394e+09f, 1.27850136e+09f,
     1.30850457e+09f},
    {11164985.1f, 3266690.71f, 388617.498f, 13128.4702f, 0.0f, 179062661.0f, 162988812.0f, 146937380.0f, 130916163.0f,
     114936969.0f, 99018427.8f, 83191517.9f, 67511063.7f, 52081574.0f, 37119706.7f, 23111584.2f},
    {-5124652.27f, -2631396.69f, -565752.021f, -34513.9387f, 0.0f, -8041512.75f, -8031784.53f, -8018848.67f,
     -8001158.12f, -7976135.45f, -7939262.05f, -7882120.64f, -7787884.78f, -7620149.07f, -7293833.87f, -6603191.03f},
    {679220.588f, 894646.801f, 400474.255f, 39379.5913f, 0.0f, 2828.68882f, 3712.85555f, 4988.53202f, 6933.08638f,
     9983.41746f, 15032.8448f, 23919.0007f, 40741.7105f, 75324.7529f, 152587.087f, 331483.293f}};

// Replaces 32 numbers in each of N registers. What is done to all of them at once hides how long each step takes.
template <int N>
DEEM_INLINE void gelu_words(__m512i (&words)[N], const __m512 (&table)[4]) {
  constexpr int16_t kLeft = int16_t(0xc160),
                    kRight = 0x4080;  // -14, in interval -12, and 4, from where on x * Phi(x) rounds to x
  const __m512 unit =
      _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: the lowest bits of a sum are the other number, rounded
  const __m512 scale = _mm512_set1_ps(0.864864865f);
  const __m512i upper = _mm512_set1_epi32(int(0xffff0000)), exponents = _mm512_set1_epi32(0x7f800000);
  const __m512i fraction = _mm512_set1_epi32(0x007fffff), one = _mm512_set1_epi32(0x3f800000);
  __m512 x[2 * N], r[2 * N], l[2 * N], p[2 * N];  // numbers of even index, then those of odd index
  __m512i n[2 * N];
#define DEEM_EACH _Pragma("GCC unroll 8") for (int k = 0; k < 2 * N; k++)
#pragma GCC unroll 4
  for (int k = 0; k < N; k++) {
    // As whole numbers with a sign, the positive ones are in order; without one, the negative ones, from -0 down. NaN is clamped too.
    const __m512i within =
        _mm512_min_epu16(_mm512_min_epi16(words[k], _mm512_set1_epi16(kRight)), _mm512_set1_epi16(kLeft));
    x[2 * k] = _mm512_castsi512_ps(_mm512_slli_epi32(within, 16));
    x[2 * k + 1] = _mm512_castsi512_ps(_mm512_and_si512(within, upper));
  }
  DEEM_EACH p[k] = _mm512_fmadd_ps(x[k], scale, unit);
  DEEM_EACH n[k] = _mm512_castps_si512(p[k]);
  DEEM_EACH r[k] = _mm512_fmsub_ps(x[k], scale, _mm512_sub_ps(p[k], unit));
  DEEM_EACH l[k] = _mm512_permutexvar_ps(n[k], table[3]);
  DEEM_EACH l[k] = _mm512_fmadd_ps(l[k], r[k], _mm512_permutexvar_ps(n[k], table[2]));
  DEEM_EACH l[k] = _mm512_fmadd_ps(l[k], r[k], _mm512_permutexvar_ps(n[k], table[1]));
  DEEM_EACH l[k] = _mm512_fmadd_ps(l[k], r[k], _mm512_permutexvar_ps(n[k], table[0]));
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
  alignas(64) static constexpr int16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#pragma GCC unroll 4
  for (int k = 0; k < N; k++) {
    const __m512 even = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(words[k], 16)), p[2 * k]);
    const __m512 odd = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(words[k], upper)), p[2 * k + 1]);
    // Results below 2^-126 become zeros.
    words[k] = _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
  }
}

DEEM_INLINE void bf16_gelu_row(const bf16* x, bf16* y, int64_t n) {
  constexpr int kAtOnce = 4;  // registers
  __m512 table[4];
  for (int k = 0; k < 4; k++) table[k] = _mm512_load_ps(kLogCdf[k]);
  int64_t i = 0;
  for (; i + kAtOnce * 32 <= n; i += kAtOnce * 32) {
    __m512i words[kAtOnce];
    for (int k = 0; k < kAtOnce; k++) words[k] = _mm512_loadu_si512(x + i + k * 32);
    gelu_words(words, table);
    for (int k = 0; k < kAtOnce; k++) _mm512_storeu_si512(y + i + k * 32, words[k]);
  }
  for (; i < n; i += 32) {
    const __mmask32 there = n - i < 32 ? (1u << (n - i)) - 1 : ~0u;
    __m512i words[1] = {_mm512_maskz_loadu_epi16(there, x + i)};
    gelu_words(words, table);
    _mm512_mask_storeu_epi16(y + i, there, words[0]);
  }
}
#endif

}  // namespace deem::DEEM_ISA
#endif
