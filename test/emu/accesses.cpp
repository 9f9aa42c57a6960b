// Addresses out of bounds or out of line, threads that do not meet, launches the device refuses.
#include "planted.h"

namespace deem::test {
namespace {
using namespace deem::cuda;

constexpr int kThreads = 64;

__global__ void write_kernel(float* y, int extra) { y[threadIdx.x + unsigned(extra)] = float(threadIdx.x); }
PLANTED("a write one past the end of device memory", kAddress) {
  Device1D<float> y(kThreads);
  DEEM_LAUNCH(write_kernel, dim3(1), dim3(kThreads), 0, stream(), y, bug ? 1 : 0);
  return y.values()[5] == float(bug ? 4 : 5);
}
__global__ void read_kernel(const float* x, float* y, int extra) { y[threadIdx.x] = x[threadIdx.x + unsigned(extra)]; }
PLANTED("a read one past the end of device memory", kWrong | kAddress) {
  Device1D<float> x(ramp(kThreads)), y(kThreads);
  DEEM_LAUNCH(read_kernel, dim3(1), dim3(kThreads), 0, stream(), x, y, bug ? 1 : 0);
  return y.values()[kThreads - 1] == kThreads - 1;
}
PLANTED("a read before device memory", kAddress) {
  Device1D<float> x(ramp(kThreads)), y(kThreads);
  DEEM_LAUNCH(read_kernel, dim3(1), dim3(kThreads - 1), 0, stream(), x + 1, y, bug ? -2 : 0);
  return bug || y.values()[0] == 1;
}

__global__ void shared_kernel(float* y, int write, int read) {
  DEEM_SHARED(float, s, kThreads);
  s[int(threadIdx.x) + write] = 1;
  __syncthreads();
  y[threadIdx.x] = s[int(threadIdx.x) + read];
}
bool shared_access(int write, int read) {
  Device1D<float> y(kThreads);
  DEEM_LAUNCH(shared_kernel, dim3(1), dim3(kThreads), 0, stream(), y, write, read);
  return y.values()[kThreads - 1] == 1;
}
#ifdef __SANITIZE_ADDRESS__
PLANTED("a write one past the end of shared memory", kAddress) { return shared_access(bug ? 1 : 0, 0); }
#else
PLANTED("a write one past the end of shared memory", kError) { return shared_access(bug ? 1 : 0, 0); }
#endif
PLANTED("a read one past the end of shared memory", kWrong | kAddress) { return shared_access(0, bug ? 1 : 0); }

__global__ void dynamic_kernel(float* y, int extra) {
  DEEM_SHARED_DYN(float, s);
  s[int(threadIdx.x) + extra] = 2;
  __syncthreads();
  y[threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}
#ifdef __SANITIZE_ADDRESS__
PLANTED("a write past the end of dynamic shared memory", kAddress) {
#else
PLANTED("a write past the end of dynamic shared memory", kError) {
#endif
  Device1D<float> y(kThreads);
  DEEM_LAUNCH(dynamic_kernel, dim3(1), dim3(kThreads), kThreads * 4, stream(), y, bug ? 1 : 0);
  return y.values()[0] == 2;
}
PLANTED("dynamic shared memory in a launch without", kError) {
  Device1D<float> y(kThreads);
  DEEM_LAUNCH(dynamic_kernel, dim3(1), dim3(kThreads), bug ? 0 : kThreads * 4, stream(), y, 0);
  return y.values()[0] == 2;
}

__global__ void vector_kernel(const float* x, float4* y) {
  y[threadIdx.x] = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x);
}
PLANTED("float4 at an address not aligned to 16 bytes", kAddress) {
  Device1D<float> x(ramp(4 * kThreads + 4));
  Device1D<float4> y(kThreads);
  DEEM_LAUNCH(vector_kernel, dim3(1), dim3(kThreads), 0, stream(), x + (bug ? 1 : 0), y);
  return y.values()[1].x == float(bug ? 5 : 4);
}
__global__ void load_vec_kernel(const float* x, float* y) {
  store_vec(y + 4 * threadIdx.x, load_vec<4>(x + 4 * threadIdx.x));
}
PLANTED("load_vec at an address not aligned to the vector", kError) {
  Device1D<float> x(ramp(4 * kThreads + 4)), y(4 * kThreads);
  DEEM_LAUNCH(load_vec_kernel, dim3(1), dim3(kThreads), 0, stream(), x + (bug ? 2 : 0), y);
  return y.values()[9] == 9;
}
__global__ void copy_kernel(const float* x, float* y, int shift) {
  DEEM_SHARED(float, s, 4 * kThreads + 4);
  cp_async_16(s + 4 * threadIdx.x + shift, x + 4 * threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = s[4 * int(threadIdx.x) + shift];
}
PLANTED("cp.async to an address not aligned to its size", kError) {
  Device1D<float> x(ramp(4 * kThreads)), y(kThreads);
  DEEM_LAUNCH(copy_kernel, dim3(1), dim3(kThreads), 0, stream(), x, y, bug ? 1 : 0);
  return y.values()[3] == 12;
}
__global__ void matrix_kernel(const uint4* x, uint32_t* y, bool bug) {
  DEEM_SHARED(uint4, s, 32);
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, bug ? static_cast<const void*>(x + threadIdx.x) : s + threadIdx.x);
  y[threadIdx.x] = r[0];
}
PLANTED("ldmatrix from device memory", kError) {
  Device1D<uint4> x(std::vector<uint4>(32, uint4{7, 7, 7, 7}));
  Device1D<uint32_t> y(32);
  DEEM_LAUNCH(matrix_kernel, dim3(1), dim3(32), 0, stream(), x, y, bug);
  return y.values()[31] == 7;
}

// ---- threads that do not meet
__global__ void divergent_kernel(int* y, bool bug) {
  if (bug && threadIdx.x < 32) __syncthreads();
  else __syncthreads();
  y[threadIdx.x] = 1;
}
PLANTED("__syncthreads in two branches", kError) {
  Device1D<int> y(kThreads);
  DEEM_LAUNCH(divergent_kernel, dim3(1), dim3(kThreads), 0, stream(), y, bug);
  return y.values()[3] == 1;
}
__global__ void early_end_kernel(int* y, int n) {
  if (int(threadIdx.x) >= n) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}
PLANTED("__syncthreads after some threads ended", kError) {
  Device1D<int> y(kThreads);
  DEEM_LAUNCH(early_end_kernel, dim3(1), dim3(kThreads), 0, stream(), y, bug ? kThreads - 3 : kThreads);
  return y.values()[3] == 1;
}
__global__ void some_wait_kernel(int* y, bool bug) {
  if (!bug || threadIdx.x < 40) __syncthreads();
  y[threadIdx.x] = 1;
}
PLANTED("__syncthreads that some threads pass by", kError) {
  Device1D<int> y(kThreads);
  DEEM_LAUNCH(some_wait_kernel, dim3(1), dim3(kThreads), 0, stream(), y, bug);
  return y.values()[3] == 1;
}
__global__ void tail_sum_kernel(const int* x, int* y, int n, bool bug) {
  const int i = int(threadIdx.x);
  if (bug && i >= n) return;
  int v = i < n ? x[i] : 0;
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  if (i % 32 == 0) y[i / 32] = v;
}
PLANTED("a shuffle whose mask names lanes that ended", kError) {
  Device1D<int> x(std::vector<int>(40, 1)), y(2);
  DEEM_LAUNCH(tail_sum_kernel, dim3(1), dim3(64), 0, stream(), x, y, 40, bug);
  return y.values()[1] == 8;
}
PLANTED("a shuffle whose mask names lanes that never were", kError) {
  Device1D<int> x(std::vector<int>(64, 1)), y(2);
  DEEM_LAUNCH(tail_sum_kernel, dim3(1), dim3(bug ? 48 : 64), 0, stream(), x, y, bug ? 48 : 64, false);
  return y.values()[1] == 32;
}
__global__ void half_kernel(int* y, bool bug) {
  const int i = int(threadIdx.x);
  y[i] = i < 16 ? __shfl_sync(bug ? ~0u : 0xffffu, i, 3) : i;
}
PLANTED("a full mask in a branch of half a warp", kError) {
  Device1D<int> y(32);
  DEEM_LAUNCH(half_kernel, dim3(1), dim3(32), 0, stream(), y, bug);
  return y.values()[0] == 3;
}
__global__ void two_shuffles_kernel(int* y, bool bug) {
  const int i = int(threadIdx.x);
  if (bug && i % 2) y[i] = __shfl_xor_sync(~0u, i, 1);
  else y[i] = __shfl_xor_sync(~0u, i, 1);
}
PLANTED("lanes of a warp at different shuffles", kError) {
  Device1D<int> y(32);
  DEEM_LAUNCH(two_shuffles_kernel, dim3(1), dim3(32), 0, stream(), y, bug);
  return y.values()[0] == 1;
}
__global__ void partial_warp_kernel(float* y) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  mma_bf16(d, a, b);
  y[threadIdx.x] = d[0];
}
PLANTED("a matrix instruction of less than a warp", kError) {
  Device1D<float> y(32);
  DEEM_LAUNCH(partial_warp_kernel, dim3(1), dim3(bug ? 31 : 32), 0, stream(), y);
  return y.values()[0] == 0;
}
__global__ void in_flight_kernel(const float* x, bool bug) {
  DEEM_SHARED(float, s, 4 * kThreads);
  cp_async_16(s + 4 * threadIdx.x, x, true);
  cp_async_commit();
  if (!bug) cp_async_wait<0>();
}
PLANTED("a thread ends with cp.async in flight", kError) {
  Device1D<float> x(ramp(4));
  DEEM_LAUNCH(in_flight_kernel, dim3(1), dim3(kThreads), 0, stream(), x, bug);
  return x.values()[3] == 3;
}

// ---- what the device refuses
__global__ void nothing_kernel() {}
bool launches(dim3 grid, dim3 block, size_t shared = 0) {
  DEEM_LAUNCH(nothing_kernel, grid, block, shared, stream());
  return cudaDeviceSynchronize() == cudaSuccess;
}
PLANTED("a block of 1025 threads", kError) { return launches(dim3(1), dim3(bug ? 1025 : 1024)); }
PLANTED("a block of no threads", kError) { return launches(dim3(1), dim3(bug ? 0 : 1)); }
PLANTED("a block 65 deep", kError) { return launches(dim3(1), dim3(1, 1, bug ? 65 : 64)); }
PLANTED("an empty grid", kError) { return launches(dim3(bug ? 0 : 1), dim3(32)); }
PLANTED("a grid of 65536 rows", kError) { return launches(dim3(1, bug ? 65536 : 2), dim3(1)); }
PLANTED("a grid of 65536 layers", kError) { return launches(dim3(1, 1, bug ? 65536 : 2), dim3(1)); }
PLANTED("more dynamic shared memory than the smallest card gives", kError) {
  return launches(dim3(1), dim3(32), size_t(bug ? 100 : 99) << 10);
}
__global__ void static_kernel(float* y, bool bug) {
  DEEM_SHARED(float, s, 10 << 10);
  s[threadIdx.x] = 1;
  if (bug) {
    DEEM_SHARED(float, more, 3 << 10);
    more[threadIdx.x] = 1;
  }
  y[threadIdx.x] = s[threadIdx.x];
}
PLANTED("more than 48 KB of static shared memory", kError) {
  Device1D<float> y(32);
  DEEM_LAUNCH(static_kernel, dim3(1), dim3(32), 0, stream(), y, bug);
  return y.values()[0] == 1;
}
PLANTED("static and dynamic shared memory too much together", kError) {
  Device1D<float> y(32);
  DEEM_LAUNCH(static_kernel, dim3(1), dim3(32), size_t(bug ? 60 : 50) << 10, stream(), y, false);
  return y.values()[0] == 1;
}

}  // namespace
}  // namespace deem::test
