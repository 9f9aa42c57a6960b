#include "core/graph.h"

#include <cstdlib>
#include <string_view>

namespace deem {

DeviceGraph::DeviceGraph(Device device, const std::function<void()>& work) : device_(device) {
  const DeviceApi& api = device_api(device);
  api.begin_capture();
  try {
    work();
  } catch (...) {
    api.cancel_capture();
    throw;
  }
  graph_ = api.end_capture();
}

DeviceGraph::~DeviceGraph() { device_api(device_).destroy_graph(graph_); }

void DeviceGraph::launch() const { device_api(device_).launch_graph(graph_); }

bool records_graphs(Device device) {
  static const bool wanted = [] {
    const char* asked = std::getenv("DEEM_GRAPHS");
    return !asked || std::string_view(asked) != "0";
  }();
  return wanted && device != Device::cpu;
}

}  // namespace deem
