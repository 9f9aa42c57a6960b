// Caching allocator of device memory: blocks in size classes, kept for reuse, counted, and held below an optional limit. There is one
// stream, so a block is reusable as soon as it is released: what uses it next is queued later. Thread-safe.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/memory.h"

namespace deem::cuda {

// Throws OutOfMemory with what was asked, is in use, is cached and is free, after giving the cache back; never returns null.
void* allocate(size_t bytes);
void release(void* block, size_t bytes) noexcept;

MemoryStats memory_stats();
void reset_peak_memory();
void set_memory_limit(size_t bytes);
void empty_cache();

// How far the compute stream must have come before somebody else may write to the block that begins here: 0 for now, kInUse where
// work may have been queued on it since it was allocated, or where no block begins.
constexpr uint64_t kInUse = UINT64_MAX;
uint64_t idle_after(const void* block);

// Blocks of a recorded graph. From hold_blocks(graph) to stop_holding() everything allocated or released belongs to the graph; until
// release_blocks(graph) nothing of it is handed to anybody else, and all of it counts as in use.
void hold_blocks(void* graph);
void stop_holding() noexcept;
void release_blocks(void* graph) noexcept;

}  // namespace deem::cuda
