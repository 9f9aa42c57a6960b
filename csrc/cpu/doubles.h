// Registers of doubles, for sums of very many numbers; for the kernels in csrc/cpu/kernels/.
#pragma once
#include "cpu/simd.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// Half a register of floats, widened.
typedef double DoubleVec [[gnu::vector_size(kLanes * 4)]];
DEEM_INLINE DoubleVec low_half(Vec v) {
#if DEEM_ISA_INDEX >= 2
  return (DoubleVec)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
#elif DEEM_ISA_INDEX == 1
  return (DoubleVec)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
#else
  return (DoubleVec)_mm_cvtps_pd((__m128)v);
#endif
}
DEEM_INLINE DoubleVec high_half(Vec v) {
#if DEEM_ISA_INDEX >= 2
  return (DoubleVec)_mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
#elif DEEM_ISA_INDEX == 1
  return (DoubleVec)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
  return (DoubleVec)_mm_cvtps_pd(_mm_movehl_ps((__m128)v, (__m128)v));
#endif
}

DEEM_INLINE double total(DoubleVec v) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes / 2; i++) sum += v[i];
  return sum;
}

// Sum of (a - b)^2, or of a^2 where b is null, of n numbers.
template <class T>
static double sum_of_squares(const T* a, const T* b, int64_t n) {
  DoubleVec low[2] = {}, high[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes)
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
      const Vec x = load_vec(a + i + k * kLanes), y = b ? load_vec(b + i + k * kLanes) : Vec{};
      const DoubleVec l = low_half(x) - low_half(y), h = high_half(x) - high_half(y);
      low[k] += l * l, high[k] += h * h;
    }
  double sum = total((low[0] + low[1]) + (high[0] + high[1]));
  for (; i < n; i++) {
    const double d = double(load(a + i)) - (b ? double(load(b + i)) : 0.0);
    sum += d * d;
  }
  return sum;
}

}  // namespace deem::DEEM_ISA
#endif
