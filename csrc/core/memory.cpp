#include "core/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/error.h"

namespace deem {
namespace {

constexpr size_t kAlign = 64;

// Large blocks ask for large pages: weights that are read once a token miss the TLB at every small page.
void* take(size_t size) {
  constexpr size_t kLargePage = size_t(2) << 20;
  if (size < kLargePage) return std::aligned_alloc(kAlign, size);
  void* block = std::aligned_alloc(kLargePage, (size + kLargePage - 1) / kLargePage * kLargePage);
  if (block) madvise(block, size, MADV_HUGEPAGE);  // advice: without it the block works as well
  return block;
}

struct Pool {
  std::mutex mutex;
  std::unordered_map<size_t, std::vector<void*>> free;
  MemoryStats stats{};

  [[noreturn]] void refuse(size_t size) const {
    size_t left = stats.limit - std::min(stats.limit, stats.current);
    throw OutOfMemory(str("allocating ", size, " bytes would exceed the limit of ", stats.limit, " bytes; ",
                          stats.current, " are in use and ", left, " are free"));
  }

  void drop_cached() {
    for (auto& [size, blocks] : free) {
      for (void* b : blocks) std::free(b);
      stats.reserved -= size * blocks.size();
    }
    free.clear();
  }
};

Pool& pool() {
  static Pool* p = new Pool;  // leaked on purpose: tensors may die during static destruction
  return *p;
}

}  // namespace

void* allocate(size_t bytes) {
  check<OutOfMemory>(bytes < (size_t(1) << 48), "cannot allocate ", bytes, " bytes");
  size_t size = size_class(bytes, kAlign);
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  auto& blocks = p.free[size];
  void* block = nullptr;
  if (!blocks.empty()) {
    if (p.stats.limit && p.stats.current + size > p.stats.limit) p.refuse(size);
    block = blocks.back();
    blocks.pop_back();
  } else {
    if (p.stats.limit && p.stats.reserved + size > p.stats.limit) p.drop_cached();
    if (p.stats.limit && p.stats.reserved + size > p.stats.limit) p.refuse(size);
    block = take(size);
    if (!block) {
      p.drop_cached();
      block = take(size);
    }
    check<OutOfMemory>(block != nullptr, "the system has no ", size, " bytes left; ", p.stats.current, " are in use");
    p.stats.reserved += size;
    p.stats.allocations++;
  }
  p.stats.current += size;
  p.stats.peak = std::max(p.stats.peak, p.stats.current);
  return block;
}

void release(void* block, size_t bytes) noexcept {
  size_t size = size_class(bytes, kAlign);
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.stats.current -= size;
  try {
    p.free[size].push_back(block);
  } catch (const std::bad_alloc&) {  // no room to remember it: hand it back
    std::free(block);
    p.stats.reserved -= size;
  }
}

MemoryStats memory_stats() {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  return p.stats;
}

void reset_peak_memory() {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.stats.peak = p.stats.current;
}

void set_memory_limit(size_t bytes) {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.stats.limit = bytes;
  if (bytes && p.stats.reserved > bytes) p.drop_cached();
}

void empty_cache() {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.drop_cached();
#ifdef __GLIBC__
  malloc_trim(0);  // its own cache keeps blocks of less than some megabytes
#endif
}

}  // namespace deem
