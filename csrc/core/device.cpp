// Devices by name, and the CPU's own table: memory is the process's, nothing is queued.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "core/device_api.h"
#include "core/plugin.h"
#include "cpu/parallel.h"

namespace deem {

const char* name_of(Device d) { return d == Device::cpu ? "cpu" : "cuda"; }

Device device_from_name(const std::string& name) {
  if (name == "cpu") return Device::cpu;
  if (name == "auto") {
    if (!why_absent(Device::cuda).empty()) return Device::cpu;
    try {
      device_api(Device::cuda).synchronize();  // takes hold of the GPU, which others may keep to themselves
      return Device::cuda;
    } catch (const Error&) {
      return Device::cpu;
    }
  }
  if (name == "cuda") {
    device_api(Device::cuda);
    return Device::cuda;
  }
  constexpr std::string_view kNumbered = "cuda:";
  if (name.starts_with(kNumbered)) {
    int index = -1;
    const char *first = name.data() + kNumbered.size(), *last = name.data() + name.size();
    auto [end, error] = std::from_chars(first, last, index);
    if (error == std::errc() && end == last && index >= 0) {
      device_api(Device::cuda).select(index);
      return Device::cuda;
    }
  }
  throw DeviceError("unknown device '" + name + "', known are cpu, cuda, cuda:0 and so on, and auto");
}

static std::atomic<int> chosen_device{-1};

Device default_device() {
  if (int d = chosen_device.load(std::memory_order_relaxed); d >= 0) [[likely]]
    return Device(d);
  const char* name = std::getenv("DEEM_DEVICE");
  set_default_device(name && *name ? device_from_name(name) : Device::cpu);
  return default_device();
}

void set_default_device(Device d) { chosen_device.store(int(d), std::memory_order_relaxed); }

namespace {

void move(void* to, const void* from, size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}

[[noreturn]] void no_graphs() { throw NotImplemented("the cpu records no graphs: nothing is queued there"); }

DeviceInfo cpu_info(int) {
  size_t page = size_t(sysconf(_SC_PAGESIZE));
  return {"cpu", 0, 1, 0, 0, size_t(sysconf(_SC_PHYS_PAGES)) * page, size_t(sysconf(_SC_AVPHYS_PAGES)) * page};
}

// One core alone reaches half of what memory gives.
template <class F>
void in_pieces(size_t bytes, F&& f) {
  constexpr size_t kPiece = 1 << 18;
  const auto pieces = int64_t((bytes + kPiece - 1) / kPiece);
  parallel_for(pieces, kPiece / 16, [&](int64_t begin, int64_t end) {
    f(size_t(begin) * kPiece, std::min(bytes, size_t(end) * kPiece) - size_t(begin) * kPiece);
  });
}

constexpr DeviceApi kCpu{
    .allocate = allocate,
    .release = release,
    .memory_stats = memory_stats,
    .reset_peak_memory = reset_peak_memory,
    .set_memory_limit = set_memory_limit,
    .empty_cache = empty_cache,
    .upload = move,
    .download = move,
    .copy =
        [](void* to, const void* from, size_t bytes) {
          in_pieces(bytes, [=](size_t at, size_t n) { std::memcpy((char*)to + at, (const char*)from + at, n); });
        },
    .fill = [](void* to, int byte,
               size_t bytes) { in_pieces(bytes, [=](size_t at, size_t n) { std::memset((char*)to + at, byte, n); }); },
    .synchronize = [] {},
    .info = cpu_info,
    .select = [](int index) { check<DeviceError>(index == 0, "there is one cpu, number 0, but not ", index); },
    .begin_capture = [] { no_graphs(); },
    .end_capture = []() -> void* { no_graphs(); },
    .cancel_capture = []() noexcept {},
    .launch_graph = [](void*) { no_graphs(); },
    .destroy_graph = [](void*) noexcept {},
};

}  // namespace

const DeviceApi& device_api(Device d) {
  if (d == Device::cpu) return kCpu;
  const CudaPlugin& plugin = cuda_plugin();
  if (!plugin.api) [[unlikely]]
    throw DeviceError("device 'cuda' is not available: " + plugin.missing);
  return *plugin.api;
}

std::string why_absent(Device d) { return d == Device::cpu ? "" : cuda_plugin().missing; }

}  // namespace deem
