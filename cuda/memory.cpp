#include "cuda/memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "cuda/runtime.h"
#include "cuda/stream.h"

namespace deem::cuda {
namespace {

constexpr size_t kSmallest = 512;  // bytes; what cudaMalloc aligns to is a multiple

struct Free {
  void* block;
  uint64_t fence;  // all that used the block is done when this one has passed
};
using FreeLists = std::unordered_map<size_t, std::vector<Free>>;  // by size class

struct Live {
  uint64_t queued;  // at its allocation
  uint64_t fence;   // of its earlier use, 0 where it had none
  void* graph;      // it belongs to, or null
};

struct Pool {
  std::mutex mutex;
  FreeLists free;
  std::unordered_map<const void*, Live> live;
  std::unordered_map<void*, FreeLists> graphs;
  void* recording = nullptr;  // the graph that takes what is allocated and released now
  MemoryStats stats{};

  // cudaFree waits for all that runs, so what is queued on these blocks is done before they go.
  void drop_cached() noexcept {
    if (recording) return;  // nothing may wait meanwhile
    for (auto& [size, blocks] : free) {
      for (Free& f : blocks) cudaFree(f.block);
      stats.reserved -= size * blocks.size();
    }
    free.clear();
  }

  [[noreturn]] void refuse(size_t size) const {
    size_t left = stats.limit - std::min(stats.limit, stats.current);
    throw OutOfMemory(str("allocating ", size, " bytes on the GPU would exceed the limit of ", stats.limit, " bytes; ",
                          stats.current, " are in use and ", left, " are free"));
  }

  void* take(size_t size) {
    if (stats.limit && stats.reserved + size > stats.limit) drop_cached();
    if (stats.limit && stats.reserved + size > stats.limit) refuse(size);
    void* block = nullptr;
    cudaError_t status = cudaMalloc(&block, size);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();  // it is dealt with, and must not show at the next launch
      drop_cached();
      status = cudaMalloc(&block, size);
    }
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      size_t left = 0, total = 0;
      if (cudaMemGetInfo(&left, &total) != cudaSuccess) (void)cudaGetLastError();
      throw OutOfMemory(str("the GPU has no ", size, " bytes left in one piece; ", stats.current,
                            " are in use here and ", left, " of ", total, " are free"));
    }
    cuda_check(status, "allocate");
    stats.reserved += size;
    stats.allocations++;
    return block;
  }
};

Pool& pool() {
  static Pool* p = new Pool;  // leaked on purpose: tensors may die during static destruction
  return *p;
}

// With DEEM_CUDA_EXACT_BLOCKS=1 every block is of the size asked and none is kept, so that checkers of memory (compute-sanitizer,
// AddressSanitizer under the emulator) see accesses beyond it.
bool exact() {
  static const bool on = [] {
    const char* set = std::getenv("DEEM_CUDA_EXACT_BLOCKS");
    return set && std::string_view(set) == "1";
  }();
  return on;
}

size_t size_of_block(size_t bytes) { return exact() ? std::max<size_t>(bytes, 1) : size_class(bytes, kSmallest); }

bool pop(FreeLists& lists, size_t size, Free& out) {
  auto it = lists.find(size);
  if (it == lists.end() || it->second.empty()) return false;
  out = it->second.back();
  it->second.pop_back();
  return true;
}

}  // namespace

void* allocate(size_t bytes) {
  check<OutOfMemory>(bytes < (size_t(1) << 48), "cannot allocate ", bytes, " bytes on the GPU");
  ready();
  size_t size = size_of_block(bytes);
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  Free f{nullptr, 0};
  // What the graph holds counts as in use already.
  bool held = p.recording && pop(p.graphs[p.recording], size, f);
  if (!held) {
    if (p.stats.limit && p.stats.current + size > p.stats.limit) p.refuse(size);
    if (!pop(p.free, size, f)) f.block = p.take(size);
    p.stats.current += size;
    p.stats.peak = std::max(p.stats.peak, p.stats.current);
  }
  p.live[f.block] = {queued(), f.fence, p.recording};
  return f.block;
}

void release(void* block, size_t bytes) noexcept {
  size_t size = size_of_block(bytes);
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  auto it = p.live.find(block);
  void* graph = it == p.live.end() ? nullptr : it->second.graph;
  if (it != p.live.end()) p.live.erase(it);
  if (!graph) graph = p.recording;  // what is being recorded may use it
  try {
    Free f{block, next_fence()};
    if (graph) {
      p.graphs[graph][size].push_back(f);
    } else if (exact()) {
      cudaFree(block);  // waits for what uses it
      p.stats.reserved -= size;
      p.stats.current -= size;
    } else {
      p.free[size].push_back(f);
      p.stats.current -= size;
    }
  } catch (const std::bad_alloc&) {  // no room to remember it: hand it back, which waits for all that uses it
    cudaFree(block);
    p.stats.reserved -= size;
    p.stats.current -= size;
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
  ready();
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.stats.limit = bytes;
  if (bytes && p.stats.reserved > bytes) p.drop_cached();
}

void empty_cache() {
  ready();
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.drop_cached();
}

uint64_t idle_after(const void* block) {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  auto it = p.live.find(block);
  return it == p.live.end() || it->second.queued != queued() ? kInUse : it->second.fence;
}

void hold_blocks(void* graph) {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.graphs[graph];
  p.recording = graph;
}

void stop_holding() noexcept {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  p.recording = nullptr;
}

void release_blocks(void* graph) noexcept {
  Pool& p = pool();
  std::lock_guard lock(p.mutex);
  for (auto& [block, live] : p.live)
    if (live.graph == graph) live.graph = nullptr;
  auto held = p.graphs.extract(graph);
  if (held.empty()) return;
  for (auto& [size, blocks] : held.mapped()) {
    p.stats.current -= size * blocks.size();
    for (Free& f : blocks) {
      f.fence = next_fence();  // the graph's last launch may still be queued
      try {
        p.free[size].push_back(f);
      } catch (const std::bad_alloc&) {
        cudaFree(f.block);
        p.stats.reserved -= size;
      }
    }
  }
}

void* take_scratch(size_t bytes) { return allocate(bytes); }
void give_scratch(void* block, size_t bytes) noexcept { release(block, bytes); }

}  // namespace deem::cuda
