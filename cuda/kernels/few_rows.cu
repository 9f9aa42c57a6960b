// y = x weight^T + bias for up to eight rows of x: a warp reads two rows of the weight, once, whatever the number of rows of x. Where
// the weight has few rows, four warps share them and each takes every fourth piece. A result's sum has one order for all numbers of
// rows of x.
#include "cuda/reduce.cuh"
#include "cuda/slot.h"
#include "cuda/vec.cuh"
#include "ops/matmul.h"

namespace deem::cuda {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kRows = 2;  // kRows of the weight a warp
constexpr int kUnroll = 2;                                    // pieces of a row in flight

// M: rows of x, kWidth: elements a lane reads at once. Shared: the warps of a block share the rows.
template <class T, int M, int kWidth, bool Shared>
__global__ void __launch_bounds__(kThreads, 4) few_rows_kernel(FewRowsArgs a) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t first = (Shared ? int64_t(blockIdx.x) : int64_t(blockIdx.x) * kWarps + warp) * kRows;
  const T *x = static_cast<const T*>(a.x), *weight = static_cast<const T*>(a.weight);
  float sum[kRows][M] = {};
  const T* row[kRows];
#pragma unroll
  for (int r = 0; r < kRows; r++) row[r] = weight + (first + r < a.n ? first + r : 0) * a.k;
  constexpr int64_t kPiece = 32 * kWidth, kStep = kPiece * (Shared ? kWarps : 1);
#pragma unroll kUnroll
  for (int64_t at = (Shared ? warp * kPiece : 0) + lane * kWidth; at < a.k; at += kStep) {
    Vec<T, kWidth> w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; r++) w[r] = load_vec<kWidth>(row[r] + at);
#pragma unroll
    for (int m = 0; m < M; m++) {
      if (m >= a.m) break;
      const Vec<T, kWidth> v = load_vec<kWidth>(x + m * a.k + at);
#pragma unroll
      for (int i = 0; i < kWidth; i++)
#pragma unroll
        for (int r = 0; r < kRows; r++) sum[r][m] = fmaf(to_float(v.v[i]), to_float(w[r].v[i]), sum[r][m]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; r++)
#pragma unroll
    for (int m = 0; m < M; m++) sum[r][m] = warp_sum(sum[r][m]);
  if constexpr (Shared) {
    DEEM_SHARED(float, parts, kWarps* kRows* M);
    if (lane == 0)
#pragma unroll
      for (int i = 0; i < kRows * M; i++) parts[warp * kRows * M + i] = sum[i / M][i % M];
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int i = 0; i < kRows * M; i++) {
      float total = parts[i];
#pragma unroll
      for (int w = 1; w < kWarps; w++) total += parts[w * kRows * M + i];
      sum[i / M][i % M] = total;
    }
  }
  // Every lane has all results; lane i writes the i-th.
#pragma unroll
  for (int i = 0; i < kRows * M; i++) {
    const int64_t r = first + i / M, m = i % M;
    if (lane != i || r >= a.n || m >= a.m) continue;
    float result = sum[i / M][i % M];
    if (a.bias) result += to_float(static_cast<const T*>(a.bias)[r]);
    const int64_t at = m * a.n + r;
    if (a.y_dtype == DType::f32) static_cast<float*>(a.y)[at] = result;
    else static_cast<T*>(a.y)[at] = from_float<T>(result);
  }
}

template <class T, int M, int kWidth>
void launch_warps(const FewRowsArgs& a) {
  constexpr int64_t kManyRows = 4096;  // enough warps for any GPU
  const int64_t groups = (a.n + kRows - 1) / kRows;
  if (a.n < kManyRows)
    DEEM_LAUNCH((few_rows_kernel<T, M, kWidth, true>), dim3(unsigned(groups)), dim3(kThreads), 0, stream(), a);
  else
    DEEM_LAUNCH((few_rows_kernel<T, M, kWidth, false>), dim3(unsigned((groups + kWarps - 1) / kWarps)), dim3(kThreads),
                0, stream(), a);
}

template <class T, int kWidth>
void launch_rows(const FewRowsArgs& a) {
  if (a.m == 1) launch_warps<T, 1, kWidth>(a);
  else if (a.m == 2) launch_warps<T, 2, kWidth>(a);
  else if (a.m <= 4) launch_warps<T, 4, kWidth>(a);
  else launch_warps<T, 8, kWidth>(a);
}

void few_rows(const FewRowsArgs& a) {
  if (a.m == 0 || a.n == 0) return;
  dispatch(a.dtype, "few_rows", [&]<class T>(T) {
    const auto bits =
        reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.weight) | uintptr_t(a.k) * sizeof(T);
    if (bits % 16 == 0) launch_rows<T, kVecWidth<T>>(a);
    else launch_rows<T, 1>(a);
  });
}

}  // namespace

DEEM_CUDA_KERNEL("few_rows", few_rows);

}  // namespace deem::cuda
