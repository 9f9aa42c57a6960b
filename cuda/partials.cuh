// Sums down the columns of a matrix, in a fixed order: blocks write partial sums of a run of rows, this adds those up.
#pragma once
#include "cuda/device.cuh"

namespace deem::cuda {

constexpr int kPartialLanes = 8;

// One warp reads 32 neighbouring columns of a row; rows are dealt out to kPartialLanes warps, whose sums are added in order.
template <int LANES>
__global__ void __launch_bounds__(32 * LANES)
    sum_partials_kernel(const float* partials, int64_t count, int64_t cols, float* first, float* second) {
  DEEM_SHARED(float, sums, LANES * 32);
  const int lane = int(threadIdx.x) / 32;
  const int64_t c = int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  const float* from = partials + blockIdx.y * count * cols;
  float sum = 0;
  if (c < cols) {
#pragma unroll 4
    for (int64_t k = lane; k < count; k += LANES) sum += from[k * cols + c];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (lane != 0 || c >= cols) return;
  for (int k = 1; k < LANES; k++) sum += sums[k * 32 + threadIdx.x];
  (blockIdx.y == 0 ? first : second)[c] = sum;
}

// first[c] = sum over k of partials[k, c]; second, where given, the same of the [count, cols] that follow.
inline void sum_partials(const float* partials, int64_t count, int64_t cols, float* first, float* second = nullptr) {
  if (cols == 0) return;
  DEEM_LAUNCH(sum_partials_kernel<kPartialLanes>, dim3(unsigned((cols + 31) / 32), second ? 2 : 1),
              dim3(32 * kPartialLanes), 0, stream(), partials, count, cols, first, second);
}

}  // namespace deem::cuda
