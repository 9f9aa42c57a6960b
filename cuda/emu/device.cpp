// What the emulated card is, its errors, and launches. By default it is the smallest one the kernels must run on: 99 KB of shared
// memory a block, as sm_86, sm_89 and sm_120 have; EMU_ARCH=80 or 90 is a larger one.
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/emu/block.h"
#include "cuda/emu/memory.h"
#include "cuda/emu/runtime.h"

using namespace deem::emu;
using deem::str;

namespace {

struct Errors {
  cudaError_t last = cudaSuccess, sticky = cudaSuccess;
  cudaError_t described = cudaSuccess;
  std::string detail;
};
Errors& errors() {
  static auto* e = new Errors;
  return *e;
}

std::map<const void*, int>& asked_shared() {  // dynamic bytes that cudaFuncSetAttribute allowed
  static auto* m = new std::map<const void*, int>;
  return *m;
}

int number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

int chosen_device = 0;

}  // namespace

namespace deem::emu {

cudaError_t report(cudaError_t status, const std::string& detail) {
  Lock lock(runtime_mutex());
  Errors& e = errors();
  e.last = e.described = status;
  e.detail = detail;
  return status;
}
cudaError_t sticky() {
  Errors& e = errors();
  if (e.sticky == cudaSuccess) return cudaSuccess;
  return report(e.sticky, last_fault());
}
void forget_errors() { errors() = {}; }

const Limits& limits() {
  static const Limits l = [] {
    const int arch = number("EMU_ARCH", 86);
    const size_t optin = size_t(arch == 80 ? 163 : arch == 90 || arch == 100 ? 227 : 99) << 10;
    return Limits{arch / 10,     arch % 10, number("EMU_SMS", 4), number("EMU_DEVICES", 1),
                  kStaticShared, optin,     optin + 1024};
  }();
  return l;
}
int current_device() { return chosen_device; }

cudaError_t launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t smem, cudaStream_t stream,
                   std::function<void()> body) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (!threads || threads > 1024 || block.z > 64)
    return report(cudaErrorInvalidConfiguration,
                  str("a block of (", block.x, ", ", block.y, ", ", block.z, ") threads"));
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return report(cudaErrorInvalidConfiguration, str("a grid of (", grid.x, ", ", grid.y, ", ", grid.z, ") blocks"));
  auto asked = asked_shared().find(kernel);
  const size_t allowed = asked == asked_shared().end() ? limits().shared_block : size_t(asked->second);
  if (smem > std::max(allowed, limits().shared_block))
    return report(cudaErrorInvalidValue, str(smem, " bytes of dynamic shared memory where ", allowed, " are allowed"));
  return enqueue(
      stream, name,
      [g = Grid{name, grid, block, smem, std::max(limits().shared_optin, limits().shared_block), std::move(body)}] {
        Access access;
        if (!run_grid(g)) errors().sticky = cudaErrorLaunchFailure;
      });
}

}  // namespace deem::emu

extern "C" {

cudaError_t cudaGetLastError() {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  return std::exchange(errors().last, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  Lock lock(runtime_mutex());
  return sticky() ? sticky() : errors().last;
}
const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    default: return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t status) {
  static thread_local std::string text;
  Lock lock(runtime_mutex());
  const char* words = "error";
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: words = "invalid argument"; break;
    case cudaErrorMemoryAllocation: words = "out of memory"; break;
    case cudaErrorInvalidConfiguration: words = "invalid configuration argument"; break;
    case cudaErrorLaunchFailure: words = "unspecified launch failure"; break;
    case cudaErrorNotReady: words = "device not ready"; break;
    case cudaErrorInvalidDevice: words = "invalid device ordinal"; break;
    case cudaErrorInvalidResourceHandle: words = "invalid resource handle"; break;
    case cudaErrorStreamCaptureUnsupported: words = "operation not permitted when stream is capturing"; break;
    case cudaErrorStreamCaptureInvalidated: words = "operation failed due to a previous error during capture"; break;
    case cudaErrorStreamCaptureUnjoined: words = "capturing stream has unjoined work"; break;
    case cudaErrorStreamCaptureImplicit:
      words = "operation would make the legacy stream depend on a capturing blocking stream";
      break;
    case cudaErrorStreamCaptureIsolation: words = "dependency created on uncaptured work in another stream"; break;
    default: break;
  }
  text = str(words, " (", int(status), ")");
  if (errors().described == status && !errors().detail.empty()) text += ": " + errors().detail;
  return text.c_str();
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = limits().devices;
  return *count ? cudaSuccess : report(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int* device) {
  *device = chosen_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= limits().devices) return report(cudaErrorInvalidDevice);
  chosen_device = device;
  return cudaSuccess;
}
cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
  return device < 0 || device >= limits().devices ? report(cudaErrorInvalidDevice) : cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceReset() { return finish_all("cudaDeviceReset"); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device < 0 || device >= limits().devices) return report(cudaErrorInvalidDevice);
  *p = {};
  std::strcpy(p->name, "emulated GPU");
  const Limits& l = limits();
  p->major = l.major, p->minor = l.minor;
  p->multiProcessorCount = l.multiprocessors;
  p->totalGlobalMem = device_bytes_total();
  p->sharedMemPerBlock = l.shared_block;
  p->sharedMemPerBlockOptin = l.shared_optin;
  p->sharedMemPerMultiprocessor = l.shared_multiprocessor;
  p->reservedSharedMemPerBlock = 1024;
  p->warpSize = kWarp;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 1536;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->l2CacheSize = 4 << 20;
  p->memoryBusWidth = 128;
  p->asyncEngineCount = 2;
  p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (cudaError_t e = cudaGetDeviceProperties(&p, device)) return e;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(p.sharedMemPerBlock); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(p.sharedMemPerBlockOptin); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = int(p.sharedMemPerMultiprocessor); break;
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = p.regsPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrClockRate: *value = 1000000; break;        // kHz
    case cudaDevAttrMemoryClockRate: *value = 1000000; break;  // kHz
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    default: return report(cudaErrorInvalidValue, str("device attribute ", int(attribute), " is not emulated"));
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  std::snprintf(text, size_t(length), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  Lock lock(runtime_mutex());
  if (!kernel) return report(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > limits().shared_optin)
    return report(cudaErrorInvalidValue,
                  str(value, " bytes of shared memory where a block of this card has at most ", limits().shared_optin));
  asked_shared()[kernel] = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (!kernel) return report(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->ptxVersion = attributes->binaryVersion = limits().major * 10 + limits().minor;
  attributes->maxDynamicSharedSizeBytes = int(limits().shared_block);
  return cudaSuccess;
}
// As if registers never limited it.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t smem) {
  if (!blocks || threads < 1 || threads > 1024) return report(cudaErrorInvalidValue);
  *blocks = std::min(1536 / threads, int(limits().shared_multiprocessor / (smem + 1024)));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* kernel, int threads,
                                                                   size_t smem, unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, smem);
}

// Pools only exist to be asked for: the emulator gives memory back at once.
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  static char mark;
  *pool = reinterpret_cast<cudaMemPool_t>(&mark);
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

}  // extern "C"
