#include "cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "cuda/runtime.h"

namespace deem::cuda {

static char* pinned(size_t bytes) {
  void* p = nullptr;
  cuda_check(cudaHostAlloc(&p, bytes, cudaHostAllocDefault), "pinned memory");
  return static_cast<char*>(p);
}

static cudaEvent_t event() {
  cudaEvent_t e = nullptr;
  cuda_check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
  return e;
}

void StagingRing::make(size_t slot_bytes, size_t slots) {
  std::vector<Slot> made;
  for (size_t i = 0; i < slots; i++) made.push_back({pinned(slot_bytes), event(), false});
  slots_ = std::move(made);
  slot_bytes_ = slot_bytes;
}

void* StagingRing::take(size_t wanted, size_t& given, cudaStream_t on) {
  constexpr size_t kAlign = 64;
  if (used_ == slot_bytes_) {
    // All its copies are queued by now, so this event follows them.
    cuda_check(cudaEventRecord(slots_[at_].read, on), "upload");
    slots_[at_].pending = true;
    at_ = (at_ + 1) % slots_.size();
    used_ = 0;
    if (slots_[at_].pending) cuda_check(cudaEventSynchronize(slots_[at_].read), "upload");
    slots_[at_].pending = false;
  }
  given = std::min(wanted, slot_bytes_ - used_);
  void* room = slots_[at_].data + used_;
  used_ = std::min(slot_bytes_, (used_ + given + kAlign - 1) / kAlign * kAlign);
  return room;
}

void PinnedPair::read(void* host, const void* from, size_t bytes, cudaStream_t on) {
  constexpr size_t kPiece = size_t(4) << 20;
  for (int i = 0; i < 2; i++) {
    if (!data_[i]) data_[i] = pinned(kPiece);
    if (!landed_[i]) landed_[i] = event();
  }
  size_t pieces = (bytes + kPiece - 1) / kPiece;
  auto length = [&](size_t i) { return std::min(kPiece, bytes - i * kPiece); };
  for (size_t i = 0; i <= pieces; i++) {
    if (i < pieces) {
      cuda_check(cudaMemcpyAsync(data_[i % 2], static_cast<const char*>(from) + i * kPiece, length(i),
                                 cudaMemcpyDeviceToHost, on),
                 "download");
      cuda_check(cudaEventRecord(landed_[i % 2], on), "download");
    }
    if (i == 0) continue;
    cuda_check(cudaEventSynchronize(landed_[(i - 1) % 2]), "download");
    std::memcpy(static_cast<char*>(host) + (i - 1) * kPiece, data_[(i - 1) % 2], length(i - 1));
  }
}

}  // namespace deem::cuda
