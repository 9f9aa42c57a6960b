// Walks a row of numbers by registers; what is left of it at the end fills one in part. For the kernels in csrc/cpu/kernels/.
#pragma once
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
template <class T>
DEEM_INLINE Vec get(const T* p, Part part) {
  return load_part(p, part.count);
}
template <class T>
DEEM_INLINE void put(T* p, Vec v, Part part) {
  store_part(p, v, part.count);
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

// A row, each number widened or rounded.
template <class From, class To>
DEEM_INLINE void convert_row(const From* from, int64_t n, To* to) {
  for_row(n, [&](int64_t i, int, auto part) DEEM_ALWAYS { put(to + i, get(from + i, part), part); });
}

DEEM_INLINE float total(const Vec (&sums)[kSums]) { return add_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])); }

}  // namespace deem::DEEM_ISA
#endif
