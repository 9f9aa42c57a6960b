// Sums and maxima of a warp or a block, in an order that only the number of threads decides. Every thread gets the result.
// All threads of the warp or block must call; blocks are one-dimensional and THREADS wide.
#pragma once
#include "cuda/device.cuh"

namespace deem::cuda {

struct Sum {
  template <class T>
  DEEM_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
  DEEM_DEVICE float2 operator()(float2 a, float2 b) const { return make_float2(a.x + b.x, a.y + b.y); }
};
struct Max {
  DEEM_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
  DEEM_DEVICE double operator()(double a, double b) const { return fmax(a, b); }
  DEEM_DEVICE int operator()(int a, int b) const { return a > b ? a : b; }
};

template <class T>
DEEM_DEVICE T exchange_xor(T v, int lanes) {
  return __shfl_xor_sync(0xffffffffu, v, lanes);
}
DEEM_DEVICE float2 exchange_xor(float2 v, int lanes) {
  return make_float2(__shfl_xor_sync(0xffffffffu, v.x, lanes), __shfl_xor_sync(0xffffffffu, v.y, lanes));
}

// Over groups of WIDTH neighbouring lanes.
template <int WIDTH = 32, class T, class Op>
DEEM_DEVICE T warp_reduce(T v, Op op) {
#pragma unroll
  for (int lanes = WIDTH / 2; lanes > 0; lanes /= 2) v = op(v, exchange_xor(v, lanes));
  return v;
}

template <int THREADS, class T, class Op>
DEEM_DEVICE T block_reduce(T v, Op op) {
  static_assert(THREADS % 32 == 0 && THREADS <= 1024);
  constexpr int WARPS = THREADS / 32;
  v = warp_reduce(v, op);
  if constexpr (WARPS > 1) {
    DEEM_SHARED(T, partial, WARPS);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    v = partial[0];
#pragma unroll
    for (int w = 1; w < WARPS; w++) v = op(v, partial[w]);
    __syncthreads();  // partial may be written again by the next call
  }
  return v;
}

template <int WIDTH = 32, class T>
DEEM_DEVICE T warp_sum(T v) {
  return warp_reduce<WIDTH>(v, Sum{});
}
template <int WIDTH = 32, class T>
DEEM_DEVICE T warp_max(T v) {
  return warp_reduce<WIDTH>(v, Max{});
}
template <int THREADS, class T>
DEEM_DEVICE T block_sum(T v) {
  return block_reduce<THREADS>(v, Sum{});
}
template <int THREADS, class T>
DEEM_DEVICE T block_max(T v) {
  return block_reduce<THREADS>(v, Max{});
}
template <int THREADS>
DEEM_DEVICE float2 block_sum2(float2 v) {
  return block_reduce<THREADS>(v, Sum{});
}

}  // namespace deem::cuda
