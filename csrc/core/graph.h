// Work of a device recorded once and replayed: the same kernels with the same arguments on the same addresses. What is to change
// from one run to the next lies in tensors that the recorded work reads and that are overwritten before it is launched.
#pragma once
#include <functional>

#include "core/device_api.h"

namespace deem {

class DeviceGraph {
 public:
  // Records what `work` queues, without running it. `work` must not wait; what it throws is thrown on, and nothing is recorded.
  DeviceGraph(Device device, const std::function<void()>& work);
  ~DeviceGraph();
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;
  void launch() const;

 private:
  Device device_;
  void* graph_ = nullptr;
};

// Whether work that repeats is to be recorded there: not on the CPU, nor where DEEM_GRAPHS=0 says so.
bool records_graphs(Device device);

}  // namespace deem
