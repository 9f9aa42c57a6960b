// What the host reads of operands, and what it makes for kernels of another device.
#pragma once
#include <span>

#include "core/device_api.h"
#include "ops.h"

namespace deem {

// An integer operand whose values the host checks or plans by: contiguous on the CPU. Fetched, which waits, if it lies elsewhere.
inline Tensor on_host(const Tensor& t) { return contiguous(t).to(Device::cpu); }

// A list made on the host, where kernels of `device` can read it: in place on the CPU, so the list must outlive this there, else a
// copy. Kernels that are queued when this dies still find it: blocks are reused in the order of the queue.
template <class T>
class Uploaded {
 public:
  Uploaded(std::span<const T> list, Device device) : data_(list.data()) {
    if (device == Device::cpu) return;
    storage_ = std::make_shared<Storage>(list.size_bytes(), device);
    if (!list.empty()) device_api(device).upload(storage_->data, list.data(), list.size_bytes());
    data_ = static_cast<const T*>(storage_->data);
  }
  const T* data() const { return data_; }

 private:
  const T* data_;
  std::shared_ptr<Storage> storage_;
};
template <class Range>
Uploaded(const Range&, Device) -> Uploaded<typename Range::value_type>;

}  // namespace deem
