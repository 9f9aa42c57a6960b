// Activations as the CPU computes them (csrc/cpu/simd.h): the same formulas, none of which cancels, with this device's exp.
#pragma once
#include "cuda/device.cuh"

namespace deem::cuda {

// The quick division errs by 2 ulp, and gives 0 for divisors above 2^126, where 1 / (1 + exp(-x)) is below 1e-37.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// The standard normal's 1 - Phi(|x|), relative error 2e-7 plus what rounding x^2 costs: exp(-x^2 / 2) times a minimax
// polynomial in 1 / (1 + 0.3 |x|).
__device__ inline float normal_tail(float x) {
  const float t = __fdividef(1.0f, 1.0f + 0.3f * fabsf(x));
  float p = 3.827097343e-2f;
  p = fmaf(p, t, -1.686433826e-1f);
  p = fmaf(p, t, 2.275776690e-1f);
  p = fmaf(p, t, -7.526512217e-2f);
  p = fmaf(p, t, 1.416754062e-1f);
  p = fmaf(p, t, 9.505124879e-2f);
  p = fmaf(p, t, 1.218258511e-1f);
  p = fmaf(p, t, 1.195010018e-1f);
  p = fmaf(p, t, 6.382858443e-6f);
  return p * expf(-0.5f * x * x);
}

// Phi(x) = (1 + erf(x / sqrt 2)) / 2, without cancelling on the left.
__device__ inline float normal_cdf(float x) {
  const float tail = normal_tail(x);
  return x < 0 ? tail : 1.0f - tail;
}

__device__ inline float normal_pdf(float x) { return 0.39894228f * expf(-0.5f * x * x); }

// 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x sigmoid(2u).
__device__ inline float gelu_tanh(float x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

// Beyond 16 it is 0 or 1, and x * x would overflow.
__device__ inline float gelu_tanh_derivative(float v) {
  const float x = v < -16.0f ? -16.0f : v > 16.0f ? 16.0f : v;
  const float s = sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
  return s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 0.134145f * x * x);
}

}  // namespace deem::cuda
