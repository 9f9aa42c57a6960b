#include "core/graph.h"

#include <cstdlib>
#include <string_view>

#include "core/engine.h"

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

// On the engine thread, where nothing is being recorded between tasks: sessions are disposed of on any.
DeviceGraph::~DeviceGraph() {
  Engine::get().post([&api = device_api(device_), graph = graph_] { api.destroy_graph(graph); });
}

void DeviceGraph::launch() const { device_api(device_).launch_graph(graph_); }

bool records_graphs(Device device) {
  if (device == Device::cpu) return false;
  const char* asked = std::getenv("DEEM_GRAPHS");
  return !asked || std::string_view(asked) != "0";
}

}  // namespace deem
