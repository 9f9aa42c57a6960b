#include "cuda/stream.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/memory.h"
#include "cuda/runtime.h"
#include "cuda/staging.h"

namespace deem::cuda {
namespace {

constexpr int kLeastMajor = 8;                   // compute capability; the kernels are built for 8.0 and newer
constexpr size_t kLargeUpload = 256 << 10;       // bytes from which the copy stream is worth its two events
constexpr size_t kUploadSlot = size_t(4) << 20;  // of the copy stream; a quarter for the small ones
constexpr size_t kUploadSlots = 4;

struct Recorded {  // a graph
  cudaGraphExec_t exec = nullptr;
  std::vector<void*> pinned;  // what its uploads read
};

struct Fence {
  uint64_t number;
  cudaEvent_t event;
};

struct State {
  std::mutex mutex;  // of the first use
  std::atomic<bool> started{false};
  int index = -1;  // of the device in use; -1: not chosen yet
  int multiprocessors = 0;
  cudaStream_t compute = nullptr, copy = nullptr;
  cudaEvent_t uploaded = nullptr;
  std::atomic<uint64_t> queued{0}, fences{0};  // fences: recorded so far
  uint64_t passed = 0;                         // the highest fence known to have passed
  std::deque<Fence> waiting;                   // recorded, not known to have passed
  std::vector<cudaEvent_t> spare;
  StagingRing compute_ring, copy_ring;
  PinnedPair landing;
  Recorded* recording = nullptr;
};

State& state() {
  static State* s = new State;  // leaked on purpose: CUDA may be gone when statics are destroyed
  return *s;
}

std::atomic<const char*> last_launch{nullptr};

// Counts devices; throws what is missing.
int device_count() {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    auto version = [](int v) { return str(v / 1000, '.', v % 1000 / 10); };
    throw DeviceError(driver == 0
                          ? str("there is no NVIDIA driver; install one for CUDA ", version(runtime), " or newer")
                          : str("the NVIDIA driver is for CUDA ", version(driver), " but ", version(runtime),
                                " is needed; install a newer one"));
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    throw DeviceError("the NVIDIA driver finds no GPU; CUDA_VISIBLE_DEVICES may hide it");
  cuda_check(status, "devices");
  return count;
}

// DEEM_CUDA_DEVICE or the first.
int asked_device(int count) {
  const char* text = std::getenv("DEEM_CUDA_DEVICE");
  if (!text || !*text) return 0;
  std::string_view digits = text;
  int index = -1;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  check<DeviceError>(error == std::errc() && end == digits.data() + digits.size() && index >= 0 && index < count,
                     "DEEM_CUDA_DEVICE must be 0..", count - 1, " but is '", digits, "'");
  return index;
}

void check_index(int index, int count) {
  check<DeviceError>(index >= 0 && index < count, "there is no device 'cuda:", index,
                     "', they end at cuda:", count - 1);
}

cudaDeviceProp properties(int index) {
  cudaDeviceProp p{};
  cuda_check(cudaGetDeviceProperties(&p, index), "devices");
  return p;
}

void check_capability(const cudaDeviceProp& p) {
  check<DeviceError>(p.major >= kLeastMajor, "the GPU '", p.name, "' has compute capability ", p.major, '.', p.minor,
                     " but at least ", kLeastMajor, ".0 is needed");
}

void start(State& s) {
  std::lock_guard lock(s.mutex);
  if (s.started) return;
  int count = device_count();
  if (s.index < 0) s.index = asked_device(count);
  cudaDeviceProp p = properties(s.index);
  check_capability(p);
  cuda_check(cudaSetDevice(s.index), "device");
  s.multiprocessors = p.multiProcessorCount;
  cuda_check(cudaStreamCreateWithFlags(&s.compute, cudaStreamNonBlocking), "stream");
  cuda_check(cudaStreamCreateWithFlags(&s.copy, cudaStreamNonBlocking), "stream");
  cuda_check(cudaEventCreateWithFlags(&s.uploaded, cudaEventDisableTiming), "event");
  s.started = true;
}

void forbid_in_capture(const char* what) {
  check<DeviceError>(!state().recording, "[", what, "] cannot wait for the GPU while a graph is recorded");
}

// ---- fences ----------------------------------------------------------------------------------------------------------

// The event to wait for until fence n has passed; null where it has.
cudaEvent_t fence_event(State& s, uint64_t n) {
  while (!s.waiting.empty()) {
    if (cudaEventQuery(s.waiting.front().event) != cudaSuccess) {
      (void)cudaGetLastError();  // that it is not ready is no error
      break;
    }
    s.passed = s.waiting.front().number;
    s.spare.push_back(s.waiting.front().event);
    s.waiting.pop_front();
  }
  if (n <= s.passed) return nullptr;
  if (n > s.fences) {  // the next one: everything queued until now
    cudaEvent_t event = nullptr;
    if (s.spare.empty()) {
      cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
    } else {
      event = s.spare.back();
      s.spare.pop_back();
    }
    cuda_check(cudaEventRecord(event, s.compute), "event");
    s.waiting.push_back({++s.fences, event});
    return event;
  }
  auto it = std::find_if(s.waiting.begin(), s.waiting.end(), [n](const Fence& f) { return f.number >= n; });
  return it->event;
}

}  // namespace

void ready() {
  State& s = state();
  if (!s.started.load(std::memory_order_acquire)) start(s);
  thread_local bool current = false;  // the runtime keeps a device a thread
  if (current) return;
  cuda_check(cudaSetDevice(s.index), "device");
  current = true;
}

uint64_t queued() noexcept { return state().queued.load(std::memory_order_relaxed); }
uint64_t next_fence() noexcept { return state().fences.load(std::memory_order_relaxed) + 1; }

cudaStream_t stream() {
  ready();
  State& s = state();
  s.queued.fetch_add(1, std::memory_order_relaxed);
  return s.compute;
}

int sm_count() {
  ready();
  return state().multiprocessors;
}

bool deterministic() {
  static const bool on = [] {
    const char* set = std::getenv("DEEM_CUDA_NONDETERMINISTIC");
    return !set || std::string_view(set) != "1";
  }();
  return on;
}

void note_launch(const char* kernel) noexcept { last_launch.store(kernel, std::memory_order_relaxed); }

void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // so that an error that passes does not show again; one that stays does
  std::string message = str("[", what, "] ", cudaGetErrorName(status), ": ", cudaGetErrorString(status));
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  if (const char* kernel = last_launch.load(std::memory_order_relaxed))
    message += str("; the last kernel launched was ", kernel);
  throw DeviceError(message);
}

// ---- devices ---------------------------------------------------------------------------------------------------------

// Operations of a multiprocessor in a clock, from NVIDIA's architecture papers; two a fused multiply-add. Of 8.6, 8.9 and 12.0 what
// GeForce cards have, whose tensor cores add up f32 at half the rate of the same chips on professional cards.
struct Rates {
  int f32, tensor;
};
Rates rates(int major, int minor) {
  switch (major * 10 + minor) {
    case 80: return {128, 2048};
    case 86:
    case 89:
    case 120: return {256, 512};
    case 90: return {256, 4096};
    case 100: return {256, 8192};
    default: return {0, 0};
  }
}

void add_limits(DeviceInfo& info, const cudaDeviceProp& p) {
  int clock = 0, memory_clock = 0, bus = 0;  // kHz, kHz, bits
  cuda_check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, info.index), "devices");
  cuda_check(cudaDeviceGetAttribute(&memory_clock, cudaDevAttrMemoryClockRate, info.index), "devices");
  cuda_check(cudaDeviceGetAttribute(&bus, cudaDevAttrGlobalMemoryBusWidth, info.index), "devices");
  const Rates r = rates(p.major, p.minor);
  info.memory_rate = 2.0 * memory_clock * 1e3 * bus / 8;  // both edges of the clock
  info.f32_rate = double(r.f32) * p.multiProcessorCount * clock * 1e3;
  info.tensor_rate = double(r.tensor) * p.multiProcessorCount * clock * 1e3;
}

DeviceInfo info(int index) {
  int count = device_count();
  State& s = state();
  bool used = s.started;
  if (index < 0) index = s.index >= 0 ? s.index : asked_device(count);
  check_index(index, count);
  cudaDeviceProp p = properties(index);
  if (index == s.index || s.index < 0) check_capability(p);
  // Asking a device for its free memory puts a context of some hundred MB there, so only the one in use is asked.
  size_t left = p.totalGlobalMem, total = p.totalGlobalMem;
  if (used && index == s.index) {
    ready();
    cuda_check(cudaMemGetInfo(&left, &total), "devices");
  }
  DeviceInfo out{p.name, index, count, p.major, p.minor, total, left};
  add_limits(out, p);
  return out;
}

void select(int index) {
  int count = device_count();
  check_index(index, count);
  State& s = state();
  std::lock_guard lock(s.mutex);
  check<DeviceError>(!s.started || s.index == index, "device cuda:", s.index,
                     " is in use; one process uses one, to be chosen before the first tensor is made there");
  check_capability(properties(index));
  s.index = index;
}

// ---- copies ----------------------------------------------------------------------------------------------------------

// Queues copies through the ring; the host's bytes are read before this returns.
static void stage(State& s, StagingRing& ring, cudaStream_t on, void* to, const void* host, size_t bytes) {
  if (!ring.made()) ring.make(on == s.copy ? kUploadSlot : kUploadSlot / 4, kUploadSlots);
  for (size_t at = 0; at < bytes;) {
    size_t n = 0;
    void* slot = ring.take(bytes - at, n, on);
    std::memcpy(slot, static_cast<const char*>(host) + at, n);
    cuda_check(cudaMemcpyAsync(static_cast<char*>(to) + at, slot, n, cudaMemcpyHostToDevice, on), "upload");
    at += n;
  }
}

void upload(void* to, const void* host, size_t bytes) {
  if (bytes == 0) return;
  ready();
  State& s = state();
  if (s.recording) {  // replayed from where it is kept: the same bytes each time
    void* pinned = nullptr;
    cuda_check(cudaHostAlloc(&pinned, bytes, cudaHostAllocDefault), "upload");
    s.recording->pinned.push_back(pinned);
    std::memcpy(pinned, host, bytes);
    cuda_check(cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyHostToDevice, stream()), "upload");
    return;
  }
  uint64_t idle = bytes >= kLargeUpload ? idle_after(to) : kInUse;
  if (idle == kInUse) return stage(s, s.compute_ring, stream(), to, host, bytes);
  if (cudaEvent_t before = fence_event(s, idle)) cuda_check(cudaStreamWaitEvent(s.copy, before, 0), "upload");
  stage(s, s.copy_ring, s.copy, to, host, bytes);
  cuda_check(cudaEventRecord(s.uploaded, s.copy), "upload");
  cuda_check(cudaStreamWaitEvent(stream(), s.uploaded, 0), "upload");
}

void download(void* host, const void* from, size_t bytes) {
  if (bytes == 0) return;
  forbid_in_capture("download");
  ready();
  State& s = state();
  s.landing.read(host, from, bytes, stream());
}

void copy(void* to, const void* from, size_t bytes) {
  if (bytes) cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()), "copy");
}

void fill(void* to, int byte, size_t bytes) {
  if (bytes) cuda_check(cudaMemsetAsync(to, byte, bytes, stream()), "fill");
}

void synchronize() {
  forbid_in_capture("synchronize");
  ready();
  State& s = state();
  cuda_check(cudaStreamSynchronize(s.copy), "synchronize");
  cuda_check(cudaStreamSynchronize(s.compute), "synchronize");
}

// ---- graphs ----------------------------------------------------------------------------------------------------------

static void drop(Recorded* graph) noexcept {
  if (graph->exec) cudaGraphExecDestroy(graph->exec);
  for (void* p : graph->pinned) cudaFreeHost(p);
  release_blocks(graph);
  delete graph;
}

void begin_capture() {
  ready();
  State& s = state();
  check<DeviceError>(!s.recording, "[graph] another graph is being recorded");
  auto* graph = new Recorded;
  // Relaxed: memory may be allocated meanwhile, also by other threads.
  cudaError_t status = cudaStreamBeginCapture(s.compute, cudaStreamCaptureModeRelaxed);
  if (status != cudaSuccess) delete graph;
  cuda_check(status, "graph");
  s.recording = graph;
  hold_blocks(graph);
}

void* end_capture() {
  State& s = state();
  check<DeviceError>(s.recording != nullptr, "[graph] none is being recorded");
  Recorded* graph = std::exchange(s.recording, nullptr);
  stop_holding();
  cudaGraph_t recorded = nullptr;
  cudaError_t status = cudaStreamEndCapture(s.compute, &recorded);
  if (status == cudaSuccess) {
    status = cudaGraphInstantiate(&graph->exec, recorded, 0);
    cudaGraphDestroy(recorded);
  }
  if (status != cudaSuccess) drop(graph);
  cuda_check(status, "graph");
  return graph;
}

void cancel_capture() noexcept {
  State& s = state();
  Recorded* graph = std::exchange(s.recording, nullptr);
  if (!graph) return;
  stop_holding();
  cudaGraph_t recorded = nullptr;
  if (cudaStreamEndCapture(s.compute, &recorded) == cudaSuccess && recorded) cudaGraphDestroy(recorded);
  (void)cudaGetLastError();
  drop(graph);
}

void launch_graph(void* graph) {
  forbid_in_capture("graph");
  cuda_check(cudaGraphLaunch(static_cast<Recorded*>(graph)->exec, stream()), "graph");
}

void destroy_graph(void* graph) noexcept {
  State& s = state();
  cudaStreamSynchronize(s.compute);  // a launch may still read what was pinned for it
  drop(static_cast<Recorded*>(graph));
}

}  // namespace deem::cuda
