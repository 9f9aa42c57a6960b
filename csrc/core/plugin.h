// What a backend that is a library of its own (libdeem_cuda.so) shows the engine: one C function that returns this.
#pragma once
#include "core/device_api.h"

namespace deem {

// Raised whenever DeviceApi, PluginKernel or Plugin changes. Kernels' arguments are checked one by one, by size.
constexpr uint32_t kPluginAbi = 2;

struct PluginKernel {
  const char* op;
  size_t args_size;
  void (*fn)(const void* args);  // a void (*)(const Args&)
};

struct Plugin {
  uint32_t abi;
  const char* version;  // of the package
  bool needs_driver;    // false: the emulated build
  const PluginKernel* kernels;
  size_t kernel_count;
  const DeviceApi* api;
};

using PluginEntry = const Plugin* (*)();
constexpr const char* kPluginEntry = "deem_cuda_plugin";

// The CUDA backend, loaded by the first call: from DEEM_CUDA_PLUGIN, else from beside the engine.
struct CudaPlugin {
  const DeviceApi* api = nullptr;  // null where something is missing
  std::string missing;             // what
};
const CudaPlugin& cuda_plugin();
const DeviceApi* cuda_in_use();  // null where it was not loaded or is missing; loads nothing

}  // namespace deem
