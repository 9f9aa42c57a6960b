// Missing barriers and races between blocks.
#include "planted.h"

namespace deem::test {
namespace {
using namespace deem::cuda;

constexpr int kThreads = 128;

__global__ void reverse_kernel(const float* x, float* y, bool bug) {
  DEEM_SHARED(float, s, kThreads);
  s[threadIdx.x] = x[threadIdx.x];
  if (!bug) __syncthreads();
  y[threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}
PLANTED("no __syncthreads between writing and reading shared memory", kWrong | kRace) {
  Device1D<float> x(ramp(kThreads)), y(kThreads);
  DEEM_LAUNCH(reverse_kernel, dim3(1), dim3(kThreads), 0, stream(), x, y, bug);
  return is_reversed_ramp(y.values());
}

__global__ void reverse_warp_kernel(const float* x, float* y, bool bug) {
  DEEM_SHARED(float, s, 32);
  s[threadIdx.x] = x[threadIdx.x];
  if (!bug) __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x];
}
PLANTED("no __syncwarp in an exchange through shared memory", kWrong | kRace) {
  Device1D<float> x(ramp(32)), y(32);
  DEEM_LAUNCH(reverse_warp_kernel, dim3(1), dim3(32), 0, stream(), x, y, bug);
  return is_reversed_ramp(y.values());
}

// A shuffle brings the lanes together but orders no memory.
__global__ void reverse_shuffle_kernel(const float* x, float* y, bool bug) {
  DEEM_SHARED(float, s, 32);
  s[threadIdx.x] = x[threadIdx.x];
  const float zero = __shfl_sync(~0u, x[threadIdx.x], 0);
  if (!bug) __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x] + zero;
}
PLANTED("a shuffle in place of __syncwarp", kRace) {
  Device1D<float> x(ramp(32)), y(32);
  DEEM_LAUNCH(reverse_shuffle_kernel, dim3(1), dim3(32), 0, stream(), x, y, bug);
  return is_reversed_ramp(y.values());
}

// Copies 16 bytes a thread and reads the neighbour's, `rounds` times, with one buffer or two.
enum { kNoWait = 1, kNoBarrier = 2, kNoTrailingBarrier = 4 };
__global__ void rotate_kernel(const float* x, float* y, int rounds, int bugs) {
  DEEM_SHARED(float, s, 2 * kThreads * 4);
  const int t = int(threadIdx.x);
  auto fetch = [&](int round) {
    cp_async_16(s + (round % 2 * kThreads + t) * 4, x + (round * kThreads + t) * 4, true);
    cp_async_commit();
  };
  fetch(0);
  for (int r = 0; r < rounds; r++) {
    if (r + 1 < rounds) fetch(r + 1);
    if (!(bugs & kNoWait)) {
      if (r + 1 < rounds) cp_async_wait<1>();
      else cp_async_wait<0>();
    }
    if (!(bugs & kNoBarrier)) __syncthreads();
    y[r * kThreads + t] = s[(r % 2 * kThreads + (t + 33) % kThreads) * 4 + 3];
    if (!(bugs & kNoTrailingBarrier)) __syncthreads();
  }
  cp_async_wait<0>();
}
bool rotate(int bugs) {
  constexpr int rounds = 6;
  Device1D<float> x(ramp(rounds * kThreads * 4)), y(rounds * kThreads);
  DEEM_LAUNCH(rotate_kernel, dim3(1), dim3(kThreads), 0, stream(), x, y, rounds, bugs);
  const auto v = y.values();
  for (int r = 0; r < rounds; r++)
    for (int t = 0; t < kThreads; t++)
      if (v[size_t(r * kThreads + t)] != float((r * kThreads + (t + 33) % kThreads) * 4 + 3)) return false;
  return true;
}
PLANTED("no wait for cp.async", kWrong) { return rotate(bug ? kNoWait : 0); }
PLANTED("no barrier after the wait for cp.async", kWrong | kRace) { return rotate(bug ? kNoBarrier : 0); }
PLANTED("no barrier before a buffer is filled again", kWrong | kRace) { return rotate(bug ? kNoTrailingBarrier : 0); }

// block_sum without its second barrier: what a second call does to the first.
__global__ void two_sums_kernel(const float* x, float* y, bool bug) {
  DEEM_SHARED(float, partial, kThreads / 32);
  for (int i = 0; i < 2; i++) {
    const float sum = warp_sum(x[i * kThreads + int(threadIdx.x)]);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    y[i * kThreads + int(threadIdx.x)] = partial[0] + partial[1] + partial[2] + partial[3];
    if (!bug) __syncthreads();
  }
}
PLANTED("a reduction called twice without a barrier between", kWrong | kRace) {
  Device1D<float> x(ramp(2 * kThreads)), y(2 * kThreads);
  DEEM_LAUNCH(two_sums_kernel, dim3(1), dim3(kThreads), 0, stream(), x, y, bug);
  const auto v = y.values();
  for (int t = 0; t < kThreads; t++)
    if (v[size_t(t)] != 8128 || v[size_t(kThreads + t)] != 24512) return false;
  return true;
}

__global__ void neighbours_kernel(int* y, bool bug) {
  if (threadIdx.x == 0) y[bug ? blockIdx.x / 2 : blockIdx.x] = int(blockIdx.x);
}
PLANTED("two blocks write one element", kWrong | kRace) {
  Device1D<int> y(std::vector<int>(8));
  DEEM_LAUNCH(neighbours_kernel, dim3(8), dim3(32), 0, stream(), y, bug);
  const auto v = y.values();
  for (int i = 0; i < (bug ? 4 : 8); i++)
    if (v[size_t(i)] != (bug ? 2 * i + 1 : i)) return false;
  return true;
}

__global__ void count_kernel(int* y, bool bug) {
  if (bug) *y += 1;
  else atomicAdd(y, 1);
}
PLANTED("a counter without atomics", kRace) {
  Device1D<int> y(std::vector<int>(1));
  DEEM_LAUNCH(count_kernel, dim3(4), dim3(64), 0, stream(), y, bug);
  return y.values()[0] == 256;
}

// The block that comes last adds up what all wrote; only a fence makes it see that.
__global__ void last_block_kernel(const float* x, float* partial, unsigned* ticket, float* sum, bool bug) {
  DEEM_SHARED(bool, last, 1);
  const float mine = warp_sum(x[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = mine;
    if (!bug) __threadfence();
    last[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (!bug) __threadfence();
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    float total = 0;
    for (unsigned b = 0; b < gridDim.x; b++) total += partial[b];
    *sum = total;
  }
}
PLANTED("the last block reads the others' sums without a fence", kRace) {
  Device1D<float> x(ramp(4 * 32)), partial(4), sum(1);
  Device1D<unsigned> ticket(std::vector<unsigned>(1));
  DEEM_LAUNCH(last_block_kernel, dim3(4), dim3(32), 0, stream(), x, partial, ticket, sum, bug);
  return sum.values()[0] == 8128;
}

__global__ void atomic_sum_kernel(const float* x, float* y, bool bug) {
  if (bug) atomicAdd(y, x[blockIdx.x * 32 + threadIdx.x]);
  else if (blockIdx.x == 0 && threadIdx.x == 0)
    for (unsigned i = 0; i < gridDim.x * 32; i++) *y += x[i];
}
PLANTED("a sum of floats in the order of the threads", kWrong) {
  std::vector<float> values(256);
  float sum = 0;
  for (size_t i = 0; i < values.size(); i++) values[i] = 1 / float(i * 7 + 1), sum += values[i];
  Device1D<float> x(values), y(std::vector<float>(1));
  DEEM_LAUNCH(atomic_sum_kernel, dim3(8), dim3(32), 0, stream(), x, y, bug);
  return y.values()[0] == sum;
}

__global__ void uninitialised_kernel(const float* x, float* y, bool bug) {
  DEEM_SHARED(float, s, 33);
  s[threadIdx.x] = x[threadIdx.x];
  if (!bug && threadIdx.x == 0) s[32] = 0;
  __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x] + s[32];
}
PLANTED("shared memory that nobody wrote", kWrong) {
  Device1D<float> x(ramp(32)), y(32);
  DEEM_LAUNCH(uninitialised_kernel, dim3(1), dim3(32), 0, stream(), x, y, bug);
  return is_reversed_ramp(y.values());
}
PLANTED("device memory that nobody wrote", kWrong) {
  Device1D<float> full(ramp(32)), empty(32), y(32);
  DEEM_LAUNCH(reverse_warp_kernel, dim3(1), dim3(32), 0, stream(), bug ? empty.data : full.data, y, false);
  return is_reversed_ramp(y.values());
}

}  // namespace
}  // namespace deem::test
