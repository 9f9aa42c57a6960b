// CUDA C++'s built-in functions on the host. Approximate ones are exact here, so comparisons need tolerances.
#pragma once
#include <bit>
#include <cstring>
#include <type_traits>

#include "cuda/emu/emu.h"

namespace deem::cuda {

using emu::Where;
constexpr int warpSize = emu::kWarp;

// ---- barriers and fences
inline void __syncthreads(const Where& where = Where::current()) { emu::barrier(where); }
inline int __syncthreads_count(int p, const Where& where = Where::current()) { return emu::barrier(where, p != 0); }
inline int __syncthreads_or(int p, const Where& where = Where::current()) { return emu::barrier(where, p != 0) != 0; }
inline int __syncthreads_and(int p, const Where& where = Where::current()) { return emu::barrier(where, p == 0) == 0; }
inline void __syncwarp(uint32_t mask = ~0u, const Where& where = Where::current()) {
  emu::collective(mask, nullptr, nullptr, nullptr, true, where);
}
inline void __threadfence() { emu::fence(); }
inline void __threadfence_block() { emu::fence(); }

// ---- warp exchanges
template <class T>
struct ShuffleIn {
  T value;
  int lane, width;
};
enum class Shuffle { index, up, down, butterfly };

template <Shuffle KIND, class T>
__attribute__((no_sanitize("thread"))) void shuffle_op(const emu::Lanes& lanes, uint32_t mask) {
  for (int l = 0; l < emu::kWarp; l++) {
    if (!(mask >> l & 1)) continue;
    const auto& in = *static_cast<const ShuffleIn<T>*>(lanes.in[l]);
    const int first = l & -in.width, last = first + in.width - 1;
    int from = l;
    if constexpr (KIND == Shuffle::index) from = first + (in.lane & (in.width - 1));
    if constexpr (KIND == Shuffle::up) from = l - in.lane >= first ? l - in.lane : l;
    if constexpr (KIND == Shuffle::down) from = l + in.lane <= last ? l + in.lane : l;
    if constexpr (KIND == Shuffle::butterfly) from = (l ^ in.lane) <= last ? l ^ in.lane : l;
    T value;
    if (mask >> from & 1) value = static_cast<const ShuffleIn<T>*>(lanes.in[from])->value;
    else std::memset(static_cast<void*>(&value), 0xff, sizeof value);  // undefined on the GPU
    *static_cast<T*>(lanes.out[l]) = value;
  }
}
template <Shuffle KIND, class T>
T shuffle(uint32_t mask, T value, int lane, int width, const Where& where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8));
  if (width < 1 || width > emu::kWarp || (width & (width - 1))) emu::fault("the width of a shuffle is no power of two");
  ShuffleIn<T> in{value, lane, width};
  T out;
  emu::collective(mask, shuffle_op<KIND, T>, &in, &out, false, where);
  return out;
}
template <class T>
T __shfl_sync(uint32_t mask, T v, int lane, int width = warpSize, const Where& where = Where::current()) {
  return shuffle<Shuffle::index>(mask, v, lane, width, where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = warpSize, const Where& where = Where::current()) {
  return shuffle<Shuffle::up>(mask, v, int(delta), width, where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = warpSize, const Where& where = Where::current()) {
  return shuffle<Shuffle::down>(mask, v, int(delta), width, where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int lanes, int width = warpSize, const Where& where = Where::current()) {
  return shuffle<Shuffle::butterfly>(mask, v, lanes, width, where);
}

__attribute__((no_sanitize("thread"))) inline void ballot_op(const emu::Lanes& lanes, uint32_t mask) {
  uint32_t votes = 0;
  for (int l = 0; l < emu::kWarp; l++)
    if (mask >> l & 1 && *static_cast<const int*>(lanes.in[l])) votes |= 1u << l;
  for (int l = 0; l < emu::kWarp; l++)
    if (mask >> l & 1) *static_cast<uint32_t*>(lanes.out[l]) = votes;
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, const Where& where = Where::current()) {
  uint32_t votes;
  emu::collective(mask, ballot_op, &predicate, &votes, false, where);
  return votes;
}
inline int __any_sync(uint32_t mask, int predicate, const Where& where = Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, const Where& where = Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}
__attribute__((no_sanitize("thread"))) inline void match_op(const emu::Lanes& lanes, uint32_t mask) {
  for (int l = 0; l < emu::kWarp; l++) {
    if (!(mask >> l & 1)) continue;
    uint32_t same = 0;
    for (int o = 0; o < emu::kWarp; o++)
      if (mask >> o & 1 && *static_cast<const uint64_t*>(lanes.in[o]) == *static_cast<const uint64_t*>(lanes.in[l]))
        same |= 1u << o;
    *static_cast<uint32_t*>(lanes.out[l]) = same;
  }
}
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value, const Where& where = Where::current()) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  uint32_t same;
  emu::collective(mask, match_op, &bits, &same, false, where);
  return same;
}

// ---- atomics: relaxed, as on the GPU, so that ThreadSanitizer sees what they do not order
template <class T>
T atomicAdd(T* p, T v) {
  if constexpr (std::is_integral_v<T>) {
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
  } else {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    auto* bits = reinterpret_cast<Bits*>(p);
    Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<Bits>(T(std::bit_cast<T>(old) + v)), false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return std::bit_cast<T>(old);
  }
}
template <class T, class F>
T atomic_update(T* p, F&& f) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, f(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return atomic_update(p, [&](T old) { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return atomic_update(p, [&](T old) { return old < v ? old : v; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  T old;
  __atomic_exchange(p, &v, &old, __ATOMIC_RELAXED);
  return old;
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);
}
// Counts up to `limit` and begins again.
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return atomic_update(p, [&](unsigned old) { return old >= limit ? 0u : old + 1; });
}

// ---- cached loads and streaming stores
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> v) {
  *p = v;
}

// ---- bits
inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
inline int __popc(uint32_t v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(uint32_t(v)); }
inline int __clzll(long long v) { return std::countl_zero(uint64_t(v)); }
inline int __ffs(int v) { return v ? std::countr_zero(uint32_t(v)) + 1 : 0; }
inline uint32_t __brev(uint32_t v) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return uint64_t(Wide(a) * b >> 64);
}
// Byte i of the result is byte (selector >> 4 i & 7) of b:a; bit 3 of a selector spreads that byte's sign.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t s = selector >> 4 * i & 15, byte = uint32_t(bytes >> 8 * (s & 7)) & 255;
    r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return r;
}
inline uint32_t __funnelshift_l(uint32_t lo, uint32_t hi, uint32_t shift) {
  return uint32_t((uint64_t(hi) << 32 | lo) << (shift & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t lo, uint32_t hi, uint32_t shift) {
  return uint32_t((uint64_t(hi) << 32 | lo) >> (shift & 31));
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; i++) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
  return c;
}

// ---- arithmetic
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __exp10f(float v) { return std::pow(10.0f, v); }
inline float __logf(float v) { return std::log(v); }
inline float __log2f(float v) { return std::log2(v); }
inline float __sinf(float v) { return std::sin(v); }
inline float __cosf(float v) { return std::cos(v); }
inline float __powf(float a, float b) { return std::pow(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __frcp_rn(float v) { return 1 / v; }
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline float __frsqrt_rn(float v) { return float(1 / std::sqrt(double(v))); }
inline float __saturatef(float v) { return v > 0 ? (v < 1 ? v : 1) : 0; }  // NaN becomes 0
inline float sinpif(float v) { return float(std::sin(M_PI * double(v))); }
inline float cospif(float v) { return float(std::cos(M_PI * double(v))); }
inline void sincospif(float v, float* s, float* c) { *s = sinpif(v), *c = cospif(v); }
inline void __sincosf(float v, float* s, float* c) { *s = std::sin(v), *c = std::cos(v); }

// Conversions clamp as the GPU's do, and make 0 of NaN.
template <class I>
I clamp_to(float v) {
  constexpr double low = double(std::is_signed_v<I> ? I(1) << (sizeof(I) * 8 - 1) : 0);
  constexpr double high = double(std::is_signed_v<I> ? ~(I(1) << (sizeof(I) * 8 - 1)) : I(~I(0)));
  if (!(v == v)) return 0;
  return v <= low ? I(low) : v >= high ? I(~I(0) ^ (std::is_signed_v<I> ? I(1) << (sizeof(I) * 8 - 1) : 0)) : I(v);
}
inline int __float2int_rn(float v) { return clamp_to<int>(std::nearbyint(v)); }
inline int __float2int_rz(float v) { return clamp_to<int>(std::trunc(v)); }
inline int __float2int_rd(float v) { return clamp_to<int>(std::floor(v)); }
inline int __float2int_ru(float v) { return clamp_to<int>(std::ceil(v)); }
inline unsigned __float2uint_rn(float v) { return clamp_to<unsigned>(std::nearbyint(v)); }
inline unsigned __float2uint_rz(float v) { return clamp_to<unsigned>(std::trunc(v)); }
inline float __int2float_rn(int v) { return float(v); }
inline float __uint2float_rn(unsigned v) { return float(v); }
inline float __double2float_rn(double v) { return float(v); }

#define DEEM_EMU_MINMAX(T)                         \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
DEEM_EMU_MINMAX(int)
DEEM_EMU_MINMAX(unsigned)
DEEM_EMU_MINMAX(long)
DEEM_EMU_MINMAX(unsigned long)
DEEM_EMU_MINMAX(long long)
DEEM_EMU_MINMAX(unsigned long long)
#undef DEEM_EMU_MINMAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

[[noreturn]] inline void __trap() { emu::fault("__trap()"); }

}  // namespace deem::cuda
