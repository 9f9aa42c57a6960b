// What the sanitizers must be told about fibers, and memory they must not see: emu.cpp is compiled without ThreadSanitizer, since
// its bookkeeping is no part of the program under test, and tells it what orders what.
#pragma once
#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef DEEM_EMU_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace deem::emu {

#ifdef __SANITIZE_ADDRESS__
inline void hide(void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void show(void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void hide(void*, size_t) {}
inline void show(void*, size_t) {}
#endif

#ifdef DEEM_EMU_TSAN
constexpr bool kRaces = true;  // each thread of a block has an identity of its own
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }
#else
constexpr bool kRaces = false;
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// memset without an interceptor that would take it for an access of the running thread.
inline void fill(void* p, unsigned char byte, size_t bytes) {
#ifdef DEEM_EMU_TSAN
  asm volatile("rep stosb" : "+D"(p), "+c"(bytes) : "a"(byte) : "memory");
#else
  __builtin_memset(p, byte, bytes);
#endif
}

}  // namespace deem::emu
