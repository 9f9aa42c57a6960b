#include "core/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/error.h"

namespace deem {
namespace {

constexpr size_t kAlign = 64;
// From here on blocks are mappings of their own. Pages that the system has yet to clear cost 0.05 to 0.4 ms a megabyte (measured; more
// where a virtual machine has to find them first), so that a size never seen before would cost more than most operations on it.
constexpr size_t kLarge = size_t(1) << 20;
constexpr size_t kLargePage = size_t(2) << 20;

// An address with so many bytes of its own, on a boundary of large pages, or null. Where the mapping that is to replace it fails, it may be
// gone, with another thread's in its place, so it is left: it holds no memory.
char* reserve(size_t size) {
  void* wide = mmap(nullptr, size + kLargePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (wide == MAP_FAILED) return nullptr;
  size_t before = -size_t(wide) % kLargePage;
  char* block = static_cast<char*>(wide) + before;
  if (before) munmap(wide, before);
  munmap(block + size, kLargePage - before);
  return block;
}

// Ask for large pages: weights that are read once a token miss the TLB at every small page.
void advise(void* block, size_t size) {
  madvise(block, size, MADV_HUGEPAGE);  // without it the block works as well
}

void* take(size_t size) {
  if (size < kLarge) return std::aligned_alloc(kAlign, size);
  char* block = reserve(size);
  if (!block) return nullptr;
  if (mmap(block, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
    return nullptr;
  advise(block, size);
  return block;
}

void give_back(void* block, size_t size) {
  if (size < kLarge) std::free(block);
  else munmap(block, size);
}

// Moves the pages of a large block, not what is on them, so that only the added ones are new. Null where that fails: the block is as
// it was.
void* grow(void* block, size_t size, size_t larger) {
  char* place = reserve(larger);
  if (!place) return nullptr;
  if (mremap(block, size, larger, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) return nullptr;
  advise(place, larger);
  return place;
}

struct Pool {
  std::mutex mutex;
  std::map<size_t, std::vector<void*>> free;  // by size
  // Sizes of the live blocks that are larger than the class of what was asked.
  std::unordered_map<const void*, size_t> lent;
  MemoryStats stats{};

  // Nothing is kept any more.
  [[noreturn]] void refuse(size_t size) const {
    size_t left = stats.limit - std::min(stats.limit, stats.reserved);
    throw OutOfMemory(str("allocating ", size, " bytes would exceed the limit of ", stats.limit, " bytes; ",
                          stats.reserved, " are in use and ", left, " are free"));
  }

  void drop_cached() {
    for (auto& [size, blocks] : free) {
      for (void* b : blocks) give_back(b, size);
      stats.reserved -= size * blocks.size();
    }
    free.clear();
  }

  // A kept block of this class, or a large one: of any size for a while, else of up to twice as much. Below a limit the rest of a lent
  // block could be what others then lack.
  void* reuse(size_t size, bool a_while) {
    if (stats.limit && stats.reserved > stats.limit) return nullptr;  // it was lowered: kept blocks have to go
    const size_t most = size < kLarge || stats.limit ? size : a_while ? SIZE_MAX : 2 * size;
    for (auto kept = free.lower_bound(size); kept != free.end() && kept->first <= most; ++kept) {
      auto& [whole, blocks] = *kept;
      if (blocks.empty()) continue;
      if (whole > size) lent.emplace(blocks.back(), whole);
      void* block = blocks.back();
      blocks.pop_back();
      return block;
    }
    return nullptr;
  }

  // The largest kept block of less than `size` bytes, made so large; at least half as large, so that it still serves what it served.
  void* extend(size_t size) {
    const size_t least = std::max(kLarge, size / 2);
    for (auto kept = free.lower_bound(size); kept != free.begin();) {
      auto& [had, blocks] = *--kept;
      if (had < least) return nullptr;
      if (blocks.empty()) continue;
      if (stats.limit && stats.reserved + size - had > stats.limit) return nullptr;
      void* block = grow(blocks.back(), had, size);
      if (!block) return nullptr;
      blocks.pop_back();
      stats.reserved += size - had;
      return block;
    }
    return nullptr;
  }

  void* take_new(size_t size) {
    if (stats.limit && stats.reserved + size > stats.limit) drop_cached();
    if (stats.limit && stats.reserved + size > stats.limit) refuse(size);
    void* block = take(size);
    if (!block) {
      drop_cached();
      block = take(size);
    }
    check<OutOfMemory>(block != nullptr, "the system has no ", size, " bytes left; ", stats.current, " are in use");
    stats.reserved += size;
    return block;
  }
};

Pool& pool() {
  static Pool* p = new Pool;  // leaked on purpose: tensors may die during static destruction
  return *p;
}

void* allocate_for(size_t bytes, bool a_while) {
  check<OutOfMemory>(bytes < (size_t(1) << 48), "cannot allocate ", bytes, " bytes");
  size_t size = size_class(bytes, kAlign);
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  void* block = p.reuse(size, a_while);
  if (!block) {
    block = p.extend(size);
    if (!block) block = p.take_new(size);
    p.stats.allocations++;
  }
  p.stats.current += size;
  p.stats.peak = std::max(p.stats.peak, p.stats.current);
  return block;
}

}  // namespace

void* allocate(size_t bytes) { return allocate_for(bytes, false); }
void* allocate_scratch(size_t bytes) { return allocate_for(bytes, true); }

void release(void* block, size_t bytes) noexcept {
  size_t size = size_class(bytes, kAlign);
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.stats.current -= size;
  if (size >= kLarge) {
    if (auto it = p.lent.find(block); it != p.lent.end()) {
      size = it->second;
      p.lent.erase(it);
    }
  }
  try {
    p.free[size].push_back(block);
  } catch (const std::bad_alloc&) {  // no room to remember it: hand it back
    give_back(block, size);
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
