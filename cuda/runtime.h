// What launchers need of the host: the compute stream, scratch memory in stream order, and errors as exceptions.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/error.h"

namespace deem::cuda {

// Throws OutOfMemory or DeviceError naming `what`. Errors of kernels show at a later call: then the last launch is named too.
void cuda_check(cudaError_t status, const char* what);

// The one stream all kernels run on. Asking for it means that work is about to be queued there.
cudaStream_t stream();

int sm_count();  // multiprocessors of the device in use

// False where results may depend on the order in which threads run, for speed.
bool deterministic();

// Who is named when the device reports an error later; the text must live for ever. Called by DEEM_LAUNCH.
void note_launch(const char* kernel) noexcept;

// Device memory in stream order, as cuda/memory.h has it.
void* take_scratch(size_t bytes);
void give_scratch(void* block, size_t bytes) noexcept;

// n elements of device memory, uninitialised; reusable by what is queued after the scope's end.
template <class T>
struct Scratch {
  explicit Scratch(int64_t n) : bytes_(n > 0 ? size_t(n) * sizeof(T) : 0) {
    if (bytes_) data_ = static_cast<T*>(take_scratch(bytes_));
  }
  ~Scratch() {
    if (data_) give_scratch(data_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }

 private:
  size_t bytes_;
  T* data_ = nullptr;
};

}  // namespace deem::cuda
