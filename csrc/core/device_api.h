// What a device other than the CPU does for the engine: memory, copies, waiting, graphs. One table of functions a device; the
// CPU's own is built in, a plugin brings another (core/plugin.h). All work of a device is queued on one stream, in the order of
// the calls, and runs later; only what is said to wait waits.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/memory.h"
#include "core/tensor.h"

namespace deem {

struct DeviceInfo {
  std::string name;                // e.g. "NVIDIA H100"
  int index, count;                // this one of how many
  int major, minor;                // compute capability; 0 for the CPU
  size_t total_bytes, free_bytes;  // of a GPU that is not in use nothing is said to be taken
  // What it can do at most, by its clocks: bytes a second of its memory, operations a second in f32 and of matrix products of 16-bit
  // numbers with f32 sums. 0 where that is not known.
  double memory_rate = 0, f32_rate = 0, tensor_rate = 0;
};

struct DeviceApi {
  // Blocks may be reused as soon as they are released: whatever uses them later is queued later. Throws OutOfMemory with what was
  // asked, what is in use and what is free.
  void* (*allocate)(size_t bytes);
  void (*release)(void* block, size_t bytes) noexcept;
  MemoryStats (*memory_stats)();
  void (*reset_peak_memory)();
  void (*set_memory_limit)(size_t bytes);
  void (*empty_cache)();

  // The host's bytes are read before these return (they are staged), so the caller may change them at once.
  void (*upload)(void* to, const void* host, size_t bytes);
  void (*download)(void* host, const void* from, size_t bytes);  // waits
  void (*copy)(void* to, const void* from, size_t bytes);        // within the device
  void (*fill)(void* to, int byte, size_t bytes);
  void (*synchronize)();  // waits for all of it; throws what went wrong in a kernel

  // -1: the one in use. Throws DeviceError for an index that is not there, and that says what is missing where nothing works.
  DeviceInfo (*info)(int index);
  void (*select)(int index);  // as info; the one in use may be chosen again, another only before the first allocation

  // What is queued between begin and end is recorded instead of run. Nothing may wait in between. A graph's blocks belong to it
  // until it is destroyed. launch queues all of it again, on the same addresses.
  void (*begin_capture)();
  void* (*end_capture)();
  void (*cancel_capture)() noexcept;
  void (*launch_graph)(void* graph);
  void (*destroy_graph)(void* graph) noexcept;
};

// Loads the device's plugin where it is not loaded yet; throws DeviceError that says what is missing.
const DeviceApi& device_api(Device d);

// Empty where the device works, else what device_api() says is missing. Never throws.
std::string why_absent(Device d);

}  // namespace deem
