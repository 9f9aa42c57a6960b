// The device in use and its two streams. Everything is queued on the compute stream; large uploads into memory that nobody uses go by
// the copy stream, past what waits there.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/device_api.h"

namespace deem::cuda {

// Makes the device in use current for this thread, and its streams the first time.
void ready();

DeviceInfo info(int index);
void select(int index);

void upload(void* to, const void* host, size_t bytes);
void download(void* host, const void* from, size_t bytes);
void copy(void* to, const void* from, size_t bytes);
void fill(void* to, int byte, size_t bytes);
void synchronize();

void begin_capture();
void* end_capture();
void cancel_capture() noexcept;
void launch_graph(void* graph);
void destroy_graph(void* graph) noexcept;

// Counts what was queued on the compute stream: two equal counts mean that nothing was in between.
uint64_t queued() noexcept;

// Fences are numbered places in the compute stream: what was queued before fence n is done when n has passed. A fence is recorded only
// when somebody waits for it, so the number to wait for is the next one.
uint64_t next_fence() noexcept;

}  // namespace deem::cuda
