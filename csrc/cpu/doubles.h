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

// Places in which sums read at once: a core gets more from memory so (Zen 3: 38 to 45 GB/s of two cores in four places, 30 to 36 in one).
constexpr int kPlaces = 4;

// Sum of (a - b)^2, or of a^2 where b is null, of n numbers.
template <class T>
static double sum_of_squares(const T* a, const T* b, int64_t n) {
  const int64_t stretch = n / (kPlaces * kLanes) * kLanes;
  DoubleVec low[kPlaces] = {}, high[kPlaces] = {};
  for (int64_t i = 0; i < stretch; i += kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < kPlaces; k++) {
      const int64_t at = k * stretch + i;
      const Vec x = load_vec(a + at), y = b ? load_vec(b + at) : Vec{};
      const DoubleVec l = low_half(x) - low_half(y), h = high_half(x) - high_half(y);
      low[k] += l * l, high[k] += h * h;
    }
  DoubleVec all = {};
  for (int k = 0; k < kPlaces; k++) all += low[k] + high[k];
  double sum = total(all);
  for (int64_t i = kPlaces * stretch; i < n; i++) {
    const double d = double(load(a + i)) - (b ? double(load(b + i)) : 0.0);
    sum += d * d;
  }
  return sum;
}

}  // namespace deem::DEEM_ISA
#endif
