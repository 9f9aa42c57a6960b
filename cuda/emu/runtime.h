// Between the parts of the emulated runtime: streams of closures, errors, limits of the device.
#pragma once
#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/emu/emu.h"

namespace deem::emu {

using Work = std::function<void()>;

// Held in every call of the runtime and while work runs.
std::recursive_mutex& runtime_mutex();
using Lock = std::lock_guard<std::recursive_mutex>;

// Remembers an error for cudaGetLastError, with words that cudaGetErrorString adds; returns it.
cudaError_t report(cudaError_t status, const std::string& detail = "");
cudaError_t sticky();  // what a kernel's fault left behind: every later call fails with it

struct Limits {
  int major, minor, multiprocessors, devices;
  size_t shared_block, shared_optin, shared_multiprocessor;  // bytes
};
const Limits& limits();
int current_device();

// Queues work, or records it where the stream is being captured.
cudaError_t enqueue(cudaStream_t stream, const char* what, Work work);
// Runs until all of the stream, or of all streams, is done.
cudaError_t finish(cudaStream_t stream, const char* what);
cudaError_t finish_all(const char* what);
// Refuses calls that wait or allocate while something is being captured.
cudaError_t refuse_in_capture(const char* what, bool relaxed_allows);
bool capturing(cudaStream_t stream);

}  // namespace deem::emu
