// What the kernels in csrc/cpu/kernels/ may use. Each file there is compiled once per instruction set, inside
// namespace DEEM_ISA, and only its own static functions may carry vector instructions: a shared inline function (std::
// algorithms, templates on public types) could be taken from the AVX-512 object on a machine without it. So kernels
// use plain loops with `#pragma omp simd`, the always_inline helpers below, and nothing else that is not inlined by force.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/kernel.h"
#include "cpu/parallel.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

DEEM_INLINE float load(const float* p) { return *p; }
DEEM_INLINE float load(const bf16* p) { return float(*p); }
DEEM_INLINE float load(const f16* p) { return float(*p); }
DEEM_INLINE void store(float* p, float v) { *p = v; }
DEEM_INLINE void store(bf16* p, float v) { *p = bf16(v); }
DEEM_INLINE void store(f16* p, float v) { *p = f16(v); }

template <class T> DEEM_INLINE T min(T a, T b) { return b < a ? b : a; }
template <class T> DEEM_INLINE T max(T a, T b) { return a < b ? b : a; }

// exp(x), relative error under 1e-7 of the true value for normal results; 0 below -87.3, +inf above 88.7, NaN stays NaN.
// Branch-free, so that loops over it vectorise. Cephes' range reduction (ln 2 in two parts), degree-6 polynomial.
DEEM_INLINE float exp(float x) {
  float c = x < -87.33f ? -87.33f : x;
  c = c > 88.72f ? 88.72f : c;
  float n = std::floor(c * 1.44269504088896341f + 0.5f);
  float r = c - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n reaches 128 at the top of the range.
  int32_t k = int32_t(n), half = k >> 1;
  float y = p * std::bit_cast<float>((half + 127) << 23) * std::bit_cast<float>((k - half + 127) << 23);
  y = x < -87.33f ? 0.0f : y;
  y = x > 88.72f ? __builtin_inff() : y;
  return x != x ? x : y;
}

DEEM_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

DEEM_INLINE float tanh(float x) {
  // Small arguments by the odd series, which 1 - 2/(e^2x + 1) would cancel.
  float a = x < 0 ? -x : x, s = x * x;
  float big = 1.0f - 2.0f / (exp(2.0f * a) + 1.0f);
  float small = a * (1.0f + s * (-0.33333333f + s * (0.13333333f + s * (-0.053968254f + s * 0.021869488f))));
  float y = a < 0.15f ? small : big;
  return x < 0 ? -y : y;
}

// erf(x) to 1.5e-7 absolute: Abramowitz & Stegun 7.1.26 is not enough near 0 for gradients, so a Taylor part there.
DEEM_INLINE float erf(float x) {
  float a = x < 0 ? -x : x, s = a * a;
  // |x| < 0.6: x * polynomial in x^2 (Taylor coefficients 2/sqrt(pi) * (-1)^k / (k! (2k+1))).
  float small = a * (1.128379167f +
                     s * (-0.3761263890f + s * (0.1128379167f + s * (-0.02686617064f + s * (0.005223977625f + s * -0.0008548327f)))));
  // otherwise erfc by the rational form of Numerical Recipes' erfcc, fractional error under 1.2e-7.
  float t = 1.0f / (1.0f + 0.5f * a);
  float e = t * exp(-s - 1.26551223f +
                    t * (1.00002368f +
                         t * (0.37409196f +
                              t * (0.09678418f +
                                   t * (-0.18628806f +
                                        t * (0.27886807f + t * (-1.13520398f + t * (1.48851587f + t * (-0.82215223f + t * 0.17087277f)))))))));
  float y = a < 0.6f ? small : 1.0f - e;
  return x < 0 ? -y : y;
}

}  // namespace deem::DEEM_ISA
#endif
