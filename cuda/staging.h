// Pinned host memory that the GPU copies from and to while the host goes on.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

namespace deem::cuda {

// Slots of pinned memory, filled in turn by uploads of one stream. A slot is written again when the stream has read it.
class StagingRing {
 public:
  bool made() const { return !slots_.empty(); }
  void make(size_t slot_bytes, size_t slots);
  // Room for the first `given` of `wanted` bytes, to be copied by what is queued on the stream next.
  void* take(size_t wanted, size_t& given, cudaStream_t on);

 private:
  struct Slot {
    char* data;
    cudaEvent_t read;
    bool pending;  // `read` was recorded
  };
  std::vector<Slot> slots_;
  size_t slot_bytes_ = 0, at_ = 0, used_ = 0;
};

// Two pieces of pinned memory: the host empties one while the GPU fills the other.
class PinnedPair {
 public:
  // Waits for all that is queued on the stream before.
  void read(void* host, const void* from, size_t bytes, cudaStream_t on);

 private:
  char* data_[2] = {};
  cudaEvent_t landed_[2] = {};
};

}  // namespace deem::cuda
