// Results that no cache could keep go past them: the memory that they replace need not be read first. For the kernels in csrc/cpu/kernels/.
#pragma once
#include <cstring>

#include "cpu/simd.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// Bytes of a result from which on it is streamed. On Zen 3 (32 MB of third-level cache) products of two arrays take a fifth less time from
// 8 MB on, and a tenth less where another operation reads them at once.
constexpr int64_t kStreamed = int64_t(16) << 20;
template <class T>
DEEM_INLINE bool is_streamed(int64_t numbers) {
  return numbers * int64_t(sizeof(T)) >= kStreamed;
}

constexpr int64_t kCacheLine = 64;  // bytes

// `bytes` bytes from `from`, which ends where a cache line of `to` does or is the last of all.
DEEM_INLINE void copy_past_caches(char* to, const char* from, int64_t bytes) {
  const int64_t first = min(bytes, -int64_t(uintptr_t(to)) & (kCacheLine - 1));
  if (first > 0) memcpy(to, from, size_t(first));
  int64_t i = first;
  for (; i + kCacheLine <= bytes; i += kCacheLine)
    for (int64_t k = 0; k < kCacheLine; k += kLanes * 4) {
      const Vec v = load_vec((const float*)(from + i + k));
#if DEEM_ISA_INDEX >= 2
      _mm512_stream_ps((float*)(to + i + k), (__m512)v);
#elif DEEM_ISA_INDEX == 1
      _mm256_stream_ps((float*)(to + i + k), (__m256)v);
#else
      _mm_stream_ps((float*)(to + i + k), (__m128)v);
#endif
    }
  if (i < bytes) memcpy(to + i, from + i, size_t(bytes - i));
}

// Copies of rows, past the caches where the whole result is streamed; `f(copy)` makes them by copy(to, from, bytes).
template <class F>
DEEM_INLINE void copy_rows(bool streamed, F&& f) {
  f([&](void* to, const void* from, int64_t bytes) DEEM_ALWAYS {
    if (streamed) copy_past_caches((char*)to, (const char*)from, bytes);
    else memcpy(to, from, size_t(bytes));
  });
  if (streamed) _mm_sfence();
}

// Calls f(to, first, count) for pieces of numbers begin..end of y, which f writes to `to`: where they belong, or, where y is streamed, a
// buffer that is.
template <class T, class F>
DEEM_INLINE void produce(T* y, int64_t begin, int64_t end, bool streamed, F&& f) {
  constexpr int64_t kPiece = 4096 / int64_t(sizeof(T));
  alignas(kCacheLine) T buffer[kPiece];
  for (int64_t i = begin, count; i < end; i += count) {
    const int64_t past_line = int64_t(uintptr_t(y + i)) % kCacheLine / int64_t(sizeof(T));
    count = streamed ? min(kPiece - past_line, end - i) : end - i;
    f(streamed ? buffer : y + i, i, count);
    if (streamed) copy_past_caches((char*)(y + i), (const char*)buffer, count * int64_t(sizeof(T)));
  }
  if (streamed) _mm_sfence();  // before others are told that y is there
}

}  // namespace deem::DEEM_ISA
#endif
