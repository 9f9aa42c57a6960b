// Finds and loads the CUDA backend. It is a library of its own, so that the addon needs neither CUDA nor a driver.
#include "core/plugin.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>

#include "core/kernel.h"

namespace deem {
namespace {

constexpr const char* kFileName = "libdeem_cuda.so";
constexpr const char* kDriver = "libcuda.so.1";

// Beside the library or program that holds the engine.
std::string beside_engine() {
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&beside_engine), &self) == 0 || !self.dli_fname) return kFileName;
  std::error_code ignored;
  std::filesystem::path path = std::filesystem::canonical(self.dli_fname, ignored);
  return ignored ? kFileName : (path.parent_path() / kFileName).string();
}

std::string last_error() {
  const char* text = dlerror();
  return text ? text : "unknown error";
}

const Plugin& open_plugin() {
  const char* asked = std::getenv("DEEM_CUDA_PLUGIN");
  bool chosen = asked && *asked;
  std::string path = chosen ? asked : beside_engine();
  if (std::error_code e; !std::filesystem::exists(path, e))
    throw DeviceError(
        "there is no CUDA backend at '" + path + "'" +
        (chosen ? ", which DEEM_CUDA_PLUGIN names"
                : "; `npm run build:cuda` builds it where CUDA's nvcc is installed, and DEEM_CUDA_PLUGIN may "
                  "name one that lies elsewhere"));
  // Never closed: kernels' addresses are in the slots, and static destructors of CUDA run at exit.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  check<DeviceError>(library != nullptr, "the CUDA backend cannot be loaded: ", library ? "" : last_error());
  auto entry = reinterpret_cast<PluginEntry>(dlsym(library, kPluginEntry));
  check<DeviceError>(entry != nullptr, "'", path, "' is no CUDA backend: it lacks the function ", kPluginEntry);
  const Plugin* plugin = entry();
  check<DeviceError>(plugin && plugin->abi == kPluginAbi, "the CUDA backend '", path, "' speaks interface ",
                     plugin ? plugin->abi : 0, " but this engine speaks ", kPluginAbi, "; build both from one version");
  check<DeviceError>(std::string_view(plugin->version) == DEEM_VERSION, "the CUDA backend '", path, "' is of version ",
                     plugin->version, " but the engine is ", DEEM_VERSION, "; build both from one version");
  return *plugin;
}

const DeviceApi& load() {
  const Plugin& plugin = open_plugin();
  if (plugin.needs_driver && !dlopen(kDriver, RTLD_NOW | RTLD_GLOBAL))
    throw DeviceError(str("there is no NVIDIA driver (", last_error(), "); install one that fits the GPU"));
  plugin.api->info(-1);  // throws where the driver is too old or there is no GPU
  for (size_t i = 0; i < plugin.kernel_count; i++)
    register_kernel(plugin.kernels[i].op, plugin.kernels[i].args_size, Device::cuda, plugin.kernels[i].fn);
  return *plugin.api;
}

std::atomic<const DeviceApi*> loaded{nullptr};

}  // namespace

const DeviceApi* cuda_in_use() { return loaded.load(std::memory_order_acquire); }

const CudaPlugin& cuda_plugin() {
  static const CudaPlugin* plugin = [] {
    auto* p = new CudaPlugin;  // leaked on purpose: tensors may die during static destruction
    try {
      p->api = &load();
      loaded.store(p->api, std::memory_order_release);
    } catch (const std::exception& e) {
      p->missing = e.what();
    }
    return p;
  }();
  return *plugin;
}

}  // namespace deem
