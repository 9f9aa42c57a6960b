// Bugs of host code: streams, memory, graphs.
#include <cstring>

#include "planted.h"

namespace deem::test {
namespace {
using namespace deem::cuda;

constexpr int kCount = 64;

void ok(cudaError_t status) { cuda_check(status, "test"); }

struct Stream {
  Stream() { ok(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(s); }
  operator cudaStream_t() const { return s; }
  cudaStream_t s;
};
struct Event {
  Event() { ok(cudaEventCreateWithFlags(&e, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(e); }
  operator cudaEvent_t() const { return e; }
  cudaEvent_t e;
};
struct Pinned {
  explicit Pinned(int n) { ok(cudaHostAlloc(reinterpret_cast<void**>(&p), size_t(n) * 4, cudaHostAllocDefault)); }
  ~Pinned() { cudaFreeHost(p); }
  operator float*() const { return p; }
  float* p;
};

__global__ void add_kernel(const float* x, float* y, float v) { y[threadIdx.x] = x[threadIdx.x] + v; }
bool is_ramp(const float* v, float offset) {
  for (int i = 0; i < kCount; i++)
    if (v[i] != float(i) + offset) return false;
  return true;
}
bool is_ramp(const std::vector<float>& v, float offset) { return is_ramp(v.data(), offset); }

PLANTED("a kernel on another stream than the copy before it, without an event", kWrong) {
  Device1D<float> x(kCount), y(kCount);
  Pinned host(kCount);
  const auto values = ramp(kCount);
  std::memcpy(host, values.data(), kCount * 4);
  Stream copies, kernels;
  Event copied;
  ok(cudaMemcpyAsync(x, host, kCount * 4, cudaMemcpyHostToDevice, copies));
  ok(cudaEventRecord(copied, copies));
  if (!bug) ok(cudaStreamWaitEvent(kernels, copied, 0));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, kernels, x, y, 1.0f);
  ok(cudaStreamSynchronize(kernels));
  return is_ramp(y.values(), 1);
}
PLANTED("an event recorded before what is waited for", kWrong) {
  Device1D<float> x(ramp(kCount)), y(kCount), z(kCount);
  Stream one, two;
  Event done;
  if (bug) ok(cudaEventRecord(done, one));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, one, x, y, 1.0f);
  if (!bug) ok(cudaEventRecord(done, one));
  ok(cudaStreamWaitEvent(two, done, 0));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, two, y, z, 1.0f);
  return is_ramp(z.values(), 2);
}
PLANTED("the default stream and a stream that is not ordered with it", kWrong) {
  Device1D<float> x(ramp(kCount)), y(kCount), z(kCount);
  cudaStream_t other;
  ok(cudaStreamCreateWithFlags(&other, bug ? cudaStreamNonBlocking : cudaStreamDefault));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, nullptr, x, y, 1.0f);
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, other, y, z, 1.0f);
  ok(cudaStreamDestroy(other));
  return is_ramp(z.values(), 2);
}
PLANTED("pinned memory written again before its copy ran", kWrong) {
  Device1D<float> x(kCount);
  Pinned host(kCount);
  const auto values = ramp(kCount);
  std::memcpy(host, values.data(), kCount * 4);
  Stream s;
  ok(cudaMemcpyAsync(x, host, kCount * 4, cudaMemcpyHostToDevice, s));
  if (!bug) ok(cudaStreamSynchronize(s));
  std::memset(host, 0, kCount * 4);
  ok(cudaStreamSynchronize(s));
  return is_ramp(x.values(), 0);
}
PLANTED("pinned memory read before the copy to it ran", kWrong) {
  Device1D<float> x(ramp(kCount));
  Pinned host(kCount);
  Stream s;
  ok(cudaMemcpyAsync(host, x, kCount * 4, cudaMemcpyDeviceToHost, s));
  if (!bug) ok(cudaStreamSynchronize(s));
  const bool right = is_ramp(host.p, 0);
  ok(cudaStreamSynchronize(s));
  return right;
}
// Pageable memory is read at the call, so writing it again is no bug.
TEST("emulator: a copy from pageable memory reads it at once") {
  Device1D<float> x(kCount);
  auto values = ramp(kCount);
  ok(cudaMemcpyAsync(x, values.data(), kCount * 4, cudaMemcpyHostToDevice, nullptr));
  for (float& v : values) v = -1;
  EXPECT(is_ramp(x.values(), 0));
}
PLANTED("the host reads device memory", kCrash) {
  Device1D<float> x(ramp(kCount));
  ok(cudaDeviceSynchronize());
  return bug ? x.data[3] == 3 : x.values()[3] == 3;
}
PLANTED("a kernel reads memory that was freed", kWrong | kAddress | kCrash) {
  auto* x = new Device1D<float>(ramp(kCount));
  Device1D<float> y(kCount);
  const float* p = x->data;
  if (bug) delete x;
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, stream(), p, y, 1.0f);
  const bool right = is_ramp(y.values(), 1);
  if (!bug) delete x;
  return right;
}
PLANTED("memory freed in the order of another stream", kWrong) {
  float* x;
  Device1D<float> y(kCount);
  Stream one, two;
  Event used;
  ok(cudaMallocAsync(reinterpret_cast<void**>(&x), kCount * 4, one));
  const auto values = ramp(kCount);
  ok(cudaMemcpyAsync(x, values.data(), kCount * 4, cudaMemcpyHostToDevice, one));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, one, x, y, 1.0f);
  ok(cudaEventRecord(used, one));
  if (!bug) ok(cudaStreamWaitEvent(two, used, 0));
  ok(cudaFreeAsync(x, two));
  try {
    return is_ramp(y.values(), 1);
  } catch (const Error&) {
    return false;  // the copy came after the end of its memory
  }
}
PLANTED("memory freed twice", kError) {
  float* x;
  ok(cudaMalloc(reinterpret_cast<void**>(&x), 64));
  ok(cudaFree(x));
  if (bug) ok(cudaFree(x));
  return true;
}
PLANTED("a copy past the end of an allocation", kError) {
  Device1D<float> x(kCount);
  const auto values = ramp(kCount + 1);
  ok(cudaMemcpy(x, values.data(), size_t(kCount + (bug ? 1 : 0)) * 4, cudaMemcpyHostToDevice));
  return is_ramp(x.values(), 0);
}
PLANTED("a copy of the wrong kind", kError) {
  Device1D<float> x(ramp(kCount)), y(kCount);
  ok(cudaMemcpy(y, x, kCount * 4, bug ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice));
  return is_ramp(y.values(), 0);
}
PLANTED("more memory than there is", kError) {
  void* p = nullptr;
  ok(cudaMalloc(&p, bug ? size_t(1) << 40 : 4096));
  ok(cudaFree(p));
  return true;
}
__global__ void trap_kernel(bool bug) {
  if (bug) __trap();
}
PLANTED("a kernel that failed fails the next call", kError) {
  DEEM_LAUNCH(trap_kernel, dim3(1), dim3(32), 0, stream(), bug);
  cudaDeviceSynchronize();
  void* p = nullptr;
  ok(cudaMalloc(&p, 64));
  ok(cudaFree(p));
  return true;
}

// ---- graphs
__global__ void step_kernel(float* x) { x[threadIdx.x] += 1; }
struct Captured {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  void launch(cudaStream_t s) const { ok(cudaGraphLaunch(exec, s)); }
  void end(cudaStream_t s) {
    ok(cudaStreamEndCapture(s, &graph));
    ok(cudaGraphInstantiate(&exec, graph, 0));
  }
  ~Captured() {
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
  }
};
TEST("emulator: a graph runs only when it is launched, each time again") {
  Device1D<float> x(ramp(kCount));
  Stream s;
  Captured g;
  ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  DEEM_LAUNCH(step_kernel, dim3(1), dim3(kCount), 0, s, x);
  DEEM_LAUNCH(step_kernel, dim3(1), dim3(kCount), 0, s, x);
  g.end(s);
  EXPECT(is_ramp(x.values(), 0));
  for (int i = 0; i < 3; i++) g.launch(s);
  EXPECT(is_ramp(x.values(), 6));
}
PLANTED("waiting for a stream that is captured", kError) {
  Stream s;
  Captured g;
  Device1D<float> x(ramp(kCount));
  ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  DEEM_LAUNCH(step_kernel, dim3(1), dim3(kCount), 0, s, x);
  if (bug) cudaStreamSynchronize(s);
  g.end(s);
  return true;
}
PLANTED("allocating while a stream is captured", kError) {
  Stream s;
  Captured g;
  Device1D<float> x(ramp(kCount));
  ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  DEEM_LAUNCH(step_kernel, dim3(1), dim3(kCount), 0, s, x);
  void* p = nullptr;
  if (bug) cudaMalloc(&p, 64);
  g.end(s);
  return true;
}
PLANTED("a copy of pageable memory in a captured stream", kError) {
  Stream s;
  Captured g;
  Device1D<float> x(kCount);
  auto values = ramp(kCount);
  ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  const cudaError_t copied = bug ? cudaMemcpyAsync(x, values.data(), kCount * 4, cudaMemcpyHostToDevice, s)
                                 : cudaMemsetAsync(x, 0, kCount * 4, s);
  g.end(s);
  ok(copied);
  return true;
}
PLANTED("another stream's work left out of a capture's end", kError) {
  Stream s, side;
  Event fork, join;
  Captured g;
  Device1D<float> x(ramp(kCount)), y(kCount), z(kCount);
  ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  ok(cudaEventRecord(fork, s));
  ok(cudaStreamWaitEvent(side, fork, 0));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, side, x, y, 1.0f);
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, s, x, z, 2.0f);
  ok(cudaEventRecord(join, side));
  if (!bug) ok(cudaStreamWaitEvent(s, join, 0));
  g.end(s);
  g.launch(s);
  return is_ramp(y.values(), 1) && is_ramp(z.values(), 2);
}
PLANTED("branches of a graph that are not ordered", kWrong) {
  Stream s, side;
  Event fork, join;
  Captured g;
  Device1D<float> x(ramp(kCount)), y(kCount), z(kCount);
  ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  ok(cudaEventRecord(fork, s));
  ok(cudaStreamWaitEvent(side, fork, 0));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, side, x, y, 1.0f);
  ok(cudaEventRecord(join, side));
  if (!bug) ok(cudaStreamWaitEvent(s, join, 0));
  DEEM_LAUNCH(add_kernel, dim3(1), dim3(kCount), 0, s, y, z, 1.0f);
  if (bug) ok(cudaStreamWaitEvent(s, join, 0));
  g.end(s);
  g.launch(s);
  return is_ramp(z.values(), 2);
}

}  // namespace
}  // namespace deem::test
