// What libdeem_cuda.so shows the engine.
#include "core/plugin.h"

#include <vector>

#include "cuda/memory.h"
#include "cuda/slot.h"
#include "cuda/stream.h"

namespace deem::cuda {

#ifdef DEEM_CUDA_EMULATED
constexpr bool kNeedsDriver = false;
#else
constexpr bool kNeedsDriver = true;
#endif

static constexpr DeviceApi kApi{
    .allocate = allocate,
    .release = release,
    .memory_stats = memory_stats,
    .reset_peak_memory = reset_peak_memory,
    .set_memory_limit = set_memory_limit,
    .empty_cache = empty_cache,
    .upload = upload,
    .download = download,
    .copy = copy,
    .fill = fill,
    .synchronize = synchronize,
    .info = info,
    .select = select,
    .begin_capture = begin_capture,
    .end_capture = end_capture,
    .cancel_capture = cancel_capture,
    .launch_graph = launch_graph,
    .destroy_graph = destroy_graph,
};

}  // namespace deem::cuda

extern "C" [[gnu::visibility("default")]] const deem::Plugin* deem_cuda_plugin() {
  using namespace deem::cuda;
  static const auto* kernels = [] {
    auto* list = new std::vector<deem::PluginKernel>;
    for (const KernelList* k = KernelList::first(); k; k = k->next) list->push_back(k->kernel);
    return list;
  }();
  static const deem::Plugin plugin{deem::kPluginAbi, DEEM_VERSION,    kNeedsDriver,
                                   kernels->data(),  kernels->size(), &kApi};
  return &plugin;
}
