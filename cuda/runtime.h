// What launchers need of the host: the compute stream, scratch memory in stream order, and errors as exceptions.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>

#include "core/error.h"

namespace deem::cuda {

inline void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::string message = str("[", what, "] ", cudaGetErrorString(status));
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  throw DeviceError(message);
}

// The one stream all kernels run on.
inline cudaStream_t stream() { return nullptr; }

inline int sm_count() {
  int count = 0;
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "sm_count");
  return count;
}

// False where results may depend on the order in which threads run, for speed.
inline bool deterministic() {
  const char* set = std::getenv("DEEM_CUDA_NONDETERMINISTIC");
  return !set || set[0] != '1';
}

// n elements of device memory, uninitialised; reusable by what is queued after the scope's end.
template <class T>
struct Scratch {
  explicit Scratch(int64_t n) {
    if (n > 0)
      cuda_check(cudaMallocAsync(reinterpret_cast<void**>(&data_), size_t(n) * sizeof(T), stream()), "scratch");
  }
  ~Scratch() {
    if (data_) cudaFreeAsync(data_, stream());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

}  // namespace deem::cuda
