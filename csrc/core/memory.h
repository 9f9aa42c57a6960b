// Caching allocator of the CPU backend: 64-byte aligned blocks in size classes, kept for reuse, counted, and held
// below an optional limit. A large block that is kept also serves what needs half of it, or any part of it for a while (not below a limit), and
// grows where only a larger one would do. Thread-safe.
#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>

namespace deem {

struct MemoryStats {
  size_t current;      // bytes in live blocks (size classes, so a little over what was asked)
  size_t peak;         // highest `current` since the last reset
  size_t reserved;     // bytes taken from the system: live blocks, lent ones whole, and cached ones
  size_t limit;        // 0: none
  size_t allocations;  // times that memory was taken from the system since the start
};

// The size of the block that holds so many bytes, at least `smallest`, a power of two. Four classes a power of two: at most 25 % of a
// block is unused.
inline size_t size_class(size_t bytes, size_t smallest) {
  if (bytes <= smallest) return smallest;
  size_t step = std::max(smallest, std::bit_ceil(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

// For scratch memory of kernels, whose sizes are many: shapes share a few blocks. What is not used is not touched.
[[gnu::always_inline]] inline size_t scratch_size(size_t bytes) {
  return bytes < 2 ? 1 : size_t(1) << (64 - __builtin_clzl(bytes - 1));
}

void* allocate(size_t bytes);          // throws OutOfMemory; never returns null, also for 0 bytes
void* allocate_scratch(size_t bytes);  // for memory that is released before the operation ends
void release(void* block, size_t bytes) noexcept;

MemoryStats memory_stats();
void reset_peak_memory();
void set_memory_limit(size_t bytes);  // 0 removes the limit; live blocks above a new limit stay
void empty_cache();                   // gives cached blocks back to the system

}  // namespace deem
