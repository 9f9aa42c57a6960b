// Walks a row of numbers by registers; what is left of it at the end fills one in part. For the kernels in csrc/cpu/kernels/.
#pragma once
#include <cstring>

#include "cpu/simd.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// How much of a register a place in a row has.
struct Whole {};
struct Part {
  int64_t count;  // 1..kLanes - 1
};

template <class T>
DEEM_INLINE Vec get(const T* p, Whole) {
  return load_vec(p);
}
template <class T>
DEEM_INLINE void put(T* p, Vec v, Whole) {
  store_vec(p, v);
}

DEEM_INLINE Vec get(const float* p, Part part) { return load_part(p, part.count); }
DEEM_INLINE void put(float* p, Vec v, Part part) { store_part(p, v, part.count); }
// Numbers of 16 bits are moved by whole words: one after the other they would take longer than all else in a short row.
template <class T>
DEEM_INLINE Vec get(const T* p, Part part) {
#if DEEM_ISA_INDEX >= 2
  const __m256i bits = _mm256_maskz_loadu_epi16(__mmask16((1u << part.count) - 1), p);
#else
  uint64_t first = 0, rest = 0;
  if (part.count & 4) memcpy(&first, p, 8), p += 4;
  if (part.count & 2) memcpy(&rest, p, 4), p += 2;
  if (part.count & 1) rest |= uint64_t(p->bits) << (part.count & 2) * 16;
  const __m128i bits =
      part.count & 4 ? _mm_set_epi64x(int64_t(rest), int64_t(first)) : _mm_set_epi64x(0, int64_t(rest));
#endif
  return load_vec((const T*)&bits);
}
template <class T>
DEEM_INLINE void put(T* p, Vec v, Part part) {
  alignas(kLanes * 2) T all[kLanes];
  store_vec(all, v);
#if DEEM_ISA_INDEX >= 2
  _mm256_mask_storeu_epi16(p, __mmask16((1u << part.count) - 1), *(const __m256i*)all);
#else
  const T* from = all;
  if (part.count & 4) memcpy(p, from, 8), p += 4, from += 4;
  if (part.count & 2) memcpy(p, from, 4), p += 2, from += 2;
  if (part.count & 1) *p = *from;
#endif
}
// v with zeros where the row has ended.
DEEM_INLINE Vec within(Vec v, Whole) { return v; }
DEEM_INLINE Vec within(Vec v, Part part) {
  for (int64_t i = part.count; i < kLanes; i++) v[i] = 0;
  return v;
}

// Calls f(i, k, part) for the registers of a row of n numbers, from number i on. k, 0..kSums - 1, is which of several sums to add to: one
// would wait for itself at every addition.
constexpr int kSums = 4;
template <class F>
DEEM_INLINE void for_row(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kSums * kLanes <= n; i += kSums * kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < kSums; k++) f(i + k * kLanes, k, Whole{});
  for (; i + kLanes <= n; i += kLanes) f(i, 0, Whole{});
  if (i < n) f(i, 1, Part{n - i});
}

DEEM_INLINE float total(const Vec (&sums)[kSums]) { return add_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])); }

}  // namespace deem::DEEM_ISA
#endif
