// What the kernels in csrc/cpu/kernels/ may use. Each file there is compiled once per instruction set, inside
// namespace DEEM_ISA, and only its own static functions may carry vector instructions: a shared inline function (std::
// algorithms, templates on public types) could be taken from the AVX-512 object on a machine without it. So kernels
// use plain loops with `#pragma omp simd`, the always_inline helpers below, and nothing else that is not inlined by force.
#pragma once
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "core/kernel.h"
#include "cpu/parallel.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

#define DEEM_ALWAYS __attribute__((always_inline))  // of a lambda, where DEEM_INLINE stands before a function

DEEM_INLINE float load(const float* p) { return *p; }
DEEM_INLINE float load(const bf16* p) { return float(*p); }
DEEM_INLINE float load(const f16* p) { return float(*p); }
DEEM_INLINE void store(float* p, float v) { *p = v; }
DEEM_INLINE void store(bf16* p, float v) { *p = bf16(v); }
DEEM_INLINE void store(f16* p, float v) { *p = f16(v); }

// One register of floats.
constexpr int64_t kLanes = DEEM_ISA_INDEX >= 2 ? 16 : DEEM_ISA_INDEX == 1 ? 8 : 4;
// Whether one instruction multiplies two pairs of numbers of this type and adds both products to a float.
template <class T>
constexpr bool kPairs = DEEM_ISA_INDEX >= 3 && dtype_of<T>::value == DType::bf16;
typedef float Vec [[gnu::vector_size(kLanes * 4), gnu::may_alias]];
typedef int32_t IntLanes [[gnu::vector_size(kLanes * 4), gnu::may_alias]];
typedef float AnyVec [[gnu::vector_size(kLanes * 4), gnu::may_alias, gnu::aligned(4)]];  // as it lies in memory

DEEM_INLINE Vec load_vec(const float* p) { return *(const AnyVec*)p; }
DEEM_INLINE Vec load_vec(const f16* p) {
#if DEEM_ISA_INDEX >= 2
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u*)p));
#elif DEEM_ISA_INDEX == 1
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u*)p));
#else
  return Vec{load(p), load(p + 1), load(p + 2), load(p + 3)};
#endif
}
DEEM_INLINE Vec load_vec(const bf16* p) {
#if DEEM_ISA_INDEX >= 2
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u*)p)), 16);
#elif DEEM_ISA_INDEX == 1
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u*)p)), 16);
#else
  return Vec{load(p), load(p + 1), load(p + 2), load(p + 3)};
#endif
}
DEEM_INLINE void store_vec(float* p, Vec v) { *(AnyVec*)p = v; }
DEEM_INLINE void store_vec(bf16* p, Vec v) {  // the bits that bf16(float) gives
#if DEEM_ISA_INDEX >= 3
  // The instruction takes numbers below 2^-126 for zeros.
  constexpr int kDenormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, kDenormal) == 0, 1))
    return _mm256_storeu_si256((__m256i_u*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#endif
  typedef uint32_t Bits [[gnu::vector_size(kLanes * 4)]];
  const Bits u = (Bits)v, nan = (Bits)(v != v);
  const Bits r = (((u + (0x7fff + (u >> 16 & 1))) & ~nan) | (nan & (u | 0x400000))) >> 16;
#if DEEM_ISA_INDEX >= 2
  _mm256_storeu_si256((__m256i_u*)p, _mm512_cvtepi32_epi16((__m512i)r));
#elif DEEM_ISA_INDEX == 1
  _mm_storeu_si128((__m128i_u*)p,
                   _mm_packus_epi32(_mm256_castsi256_si128((__m256i)r), _mm256_extracti128_si256((__m256i)r, 1)));
#else
  _mm_storel_epi64((__m128i_u*)p, _mm_packus_epi32((__m128i)r, (__m128i)r));
#endif
}
DEEM_INLINE void store_vec(f16* p, Vec v) {
#if DEEM_ISA_INDEX >= 2
  _mm256_storeu_si256((__m256i_u*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif DEEM_ISA_INDEX == 1
  _mm_storeu_si128((__m128i_u*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int64_t i = 0; i < kLanes; i++) store(p + i, v[i]);
#endif
}

// Lanes of partial sums. Vector types, because a reduction over a short loop would add the lanes one after the other.
template <int n>
struct Lanes {
  typedef float type __attribute__((vector_size(n * sizeof(float)), aligned(sizeof(float)), may_alias));
};
using F4 = Lanes<4>::type;
using F8 = Lanes<8>::type;
using F16 = Lanes<16>::type;

DEEM_INLINE float add_lanes(const F4& v) { return (v[0] + v[2]) + (v[1] + v[3]); }
DEEM_INLINE float add_lanes(const F8& v) {
  return add_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
DEEM_INLINE float add_lanes(const F16& v) {
  return add_lanes(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                   __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}

// The first `count` numbers, 0 to kLanes, of a register; the rest are zeros, and their memory is not touched. Numbers of 16 bits are moved by whole
// words: one after the other they would take longer than all else in a short row.
template <class T>
DEEM_INLINE Vec load_part(const T* p, int64_t count) {
#if DEEM_ISA_INDEX >= 2
  const __mmask16 there = __mmask16((1u << count) - 1);
  if constexpr (sizeof(T) == 4) return (Vec)_mm512_maskz_loadu_ps(there, p);
  const __m256i bits = _mm256_maskz_loadu_epi16(there, p);
  return load_vec((const T*)&bits);
#else
  if (count == kLanes) return load_vec(p);
  if constexpr (sizeof(T) == 4) {
#if DEEM_ISA_INDEX == 1
    return (Vec)_mm256_maskload_ps(p, (__m256i)(IntLanes{0, 1, 2, 3, 4, 5, 6, 7} < int32_t(count)));
#else
    Vec v{};
    for (int64_t i = 0; i < count; i++) v[i] = load(p + i);
    return v;
#endif
  } else {
    uint64_t first = 0, rest = 0;
    if (count & 4) memcpy(&first, p, 8), p += 4;
    if (count & 2) memcpy(&rest, p, 4), p += 2;
    if (count & 1) rest |= uint64_t(p->bits) << (count & 2) * 16;
    const __m128i bits = count & 4 ? _mm_set_epi64x(int64_t(rest), int64_t(first)) : _mm_set_epi64x(0, int64_t(rest));
    return load_vec((const T*)&bits);
  }
#endif
}
template <class T>
DEEM_INLINE void store_part(T* p, Vec v, int64_t count) {
#if DEEM_ISA_INDEX >= 2
  const __mmask16 there = __mmask16((1u << count) - 1);
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, there, (__m512)v);
  alignas(kLanes * 2) T all[kLanes];
  store_vec(all, v);
  _mm256_mask_storeu_epi16(p, there, *(const __m256i*)all);
#else
  if (count == kLanes) return store_vec(p, v);
  if constexpr (sizeof(T) == 4) {
#if DEEM_ISA_INDEX == 1  // some machines take long for stores by mask
    __m128 low = _mm256_castps256_ps128((__m256)v);
    if (count & 4) _mm_storeu_ps(p, low), p += 4, low = _mm256_extractf128_ps((__m256)v, 1);
    if (count & 2) _mm_storel_pi((__m64*)p, low), p += 2, low = _mm_movehl_ps(low, low);
    if (count & 1) _mm_store_ss(p, low);
#else
    for (int64_t i = 0; i < count; i++) store(p + i, v[i]);
#endif
  } else {
    alignas(16) T all[kLanes];
    store_vec(all, v);
    const T* from = all;
    if (count & 4) memcpy(p, from, 8), p += 4, from += 4;
    if (count & 2) memcpy(p, from, 4), p += 2, from += 2;
    if (count & 1) *p = *from;
  }
#endif
}

template <class T>
DEEM_INLINE T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
DEEM_INLINE T max(T a, T b) {
  return a < b ? b : a;
}

DEEM_INLINE int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
DEEM_INLINE int64_t whole_lanes(int64_t n) { return ceil_div(n, kLanes) * kLanes; }

// a * b + c, rounded once where the instruction set can. The compiler fuses too, but chooses which of two products it rounds.
DEEM_INLINE float fused(float a, float b, float c) {
#if DEEM_ISA_INDEX >= 1
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x), relative error under 1.2e-7; 0 below -86.99, +inf above 88.72, NaN stays NaN. Branch-free, so that loops over it
// vectorise. n = round(x / ln 2) sits in the low bits of a float whose unit is 1; r = x - n ln 2 with ln 2 in two parts
// (Cody and Waite); minimax polynomial of 2 exp(r), relative error 3e-9, times 2^(n - 1), whose exponent field ends at 0
// (n = -126) where results leave the normal numbers, and overflows by the product itself (n = 128).
DEEM_INLINE float exp(float x) {
  constexpr float kUnit = 12582912.0f;  // 1.5 * 2^23
  float t = x * 1.44269504088896341f + kUnit;
  float n = t - kUnit;
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 2.762908022e-3f;
  p = p * r + 1.673749039e-2f;
  p = p * r + 8.333678159e-2f;
  p = p * r + 3.333304080e-1f;
  p = p * r + 9.999998685e-1f;
  p = fused(p, r * r, 2.0f * r) + 2.0f;  // small terms first; of the two products 2 r is the exact one
  p *= std::bit_cast<float>((std::bit_cast<uint32_t>(t) << 23) + (uint32_t(126) << 23));
  // Chosen at the end: a bound put on x makes the compiler work out all that follows for it, and blend three results.
  p = x < -87.4f ? 0.0f : p;
  return x > 89.0f ? __builtin_inff() : p;
}

DEEM_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

// tanh(x), relative error under 3e-7: an odd polynomial below 0.8, where 1 - 2 / (e^2x + 1) would cancel.
DEEM_INLINE float tanh(float x) {
  float a = std::fabs(x), s = x * x;
  float big = 1.0f - 2.0f / (exp(2.0f * a) + 1.0f);
  float p = 1.584756490e-3f;
  p = p * s - 7.409557945e-3f;
  p = p * s + 2.130299151e-2f;
  p = p * s - 5.385233180e-2f;
  p = p * s + 1.333222103e-1f;
  p = p * s - 3.333329736e-1f;
  return std::copysign(a < 0.8f ? a + a * s * p : big, x);
}

// The standard normal's 1 - Phi(|x|), relative error 2e-7 plus what rounding x^2 costs: exp(-x^2 / 2) times a minimax
// polynomial in 1 / (1 + 0.3 |x|).
DEEM_INLINE float normal_tail(float x) {
  float t = 1.0f / (1.0f + 0.3f * std::fabs(x)), p = 3.827097343e-2f;
  p = p * t - 1.686433826e-1f;
  p = p * t + 2.275776690e-1f;
  p = p * t - 7.526512217e-2f;
  p = p * t + 1.416754062e-1f;
  p = p * t + 9.505124879e-2f;
  p = p * t + 1.218258511e-1f;
  p = p * t + 1.195010018e-1f;
  p = p * t + 6.382858443e-6f;
  return p * exp(-0.5f * x * x);
}

// Phi(x) = (1 + erf(x / sqrt 2)) / 2, without cancelling on the left.
DEEM_INLINE float normal_cdf(float x) {
  float tail = normal_tail(x);
  return x < 0 ? tail : 1.0f - tail;
}

// erf(x), absolute error under 2e-7; relative too near 0, by a minimax polynomial in x^2.
DEEM_INLINE float erf(float x) {
  float a = std::fabs(x), s = a * a, p = 8.513104887e-5f;
  p = p * s - 8.175639499e-4f;
  p = p * s + 5.203859180e-3f;
  p = p * s - 2.686050847e-2f;
  p = p * s + 1.128371503e-1f;
  p = p * s - 3.761263498e-1f;
  p = p * s + 1.128379167f;
  return std::copysign(a < 0.9f ? a * p : 1.0f - 2.0f * normal_tail(a * 1.41421356f), x);
}

DEEM_INLINE float normal_pdf(float x) { return 0.39894228f * exp(-0.5f * x * x); }

// Natural logarithm, relative error under 2e-7; -inf at 0, NaN below. Mantissa in [1/sqrt 2, sqrt 2), minimax polynomial.
DEEM_INLINE float log(float x) {
  bool tiny = x < 1.17549435e-38f;
  int32_t u = std::bit_cast<int32_t>(tiny ? x * 8388608.0f : x);
  int32_t e = (u - 0x3f3504f3) >> 23;
  float f = std::bit_cast<float>(u - (e << 23)) - 1.0f, n = float(e - (tiny ? 23 : 0));
  float p = 6.746642095e-2f;
  p = p * f - 1.167565245e-1f;
  p = p * f + 1.188816188e-1f;
  p = p * f - 1.240558879e-1f;
  p = p * f + 1.421955240e-1f;
  p = p * f - 1.666799586e-1f;
  p = p * f + 2.000211866e-1f;
  p = p * f - 2.500000960e-1f;
  p = p * f + 3.333331260e-1f;
  float s = f * f;
  float y = (p * f * s + n * -2.12194440e-4f) - 0.5f * s + f + n * 0.693359375f;
  y = x > 3.402823466e38f ? x : y;
  y = x == 0 ? -__builtin_inff() : y;
  return x >= 0 ? y : __builtin_nanf("");
}

// sin and cos of 2 pi u for 0 <= u <= 1, absolute error under 1e-7.
DEEM_INLINE void sin_cos_turns(float u, float& sine, float& cosine) {
  int32_t q = int32_t(u * 4.0f + 0.5f);
  float r = u * 4.0f - float(q), s = r * r;
  float sn = r * (1.570796327f +
                  s * (-6.459640961e-1f + s * (7.969258276e-2f + s * (-4.681266476e-3f + s * 1.582067422e-4f))));
  float cs = 1.0f + s * (-1.233700543f + s * (2.536692440e-1f + s * (-2.086028851e-2f + s * 9.040216707e-4f)));
  bool odd = q & 1;
  sine = odd ? cs : sn;
  cosine = odd ? sn : cs;
  sine = q & 2 ? -sine : sine;
  cosine = (q + 1) & 2 ? -cosine : cosine;
}

}  // namespace deem::DEEM_ISA
#endif
