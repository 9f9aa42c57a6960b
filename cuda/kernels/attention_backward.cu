#include "cuda/kernels/attention_backward_mma.cuh"
#include "cuda/kernels/attention_backward_simt.cuh"

#include "cuda/slot.h"

namespace deem::cuda {

// delta[b][h][i] = dy . y, a warp for each of the [B, Tq, H] rows.
template <class T>
__global__ void __launch_bounds__(128) attention_delta(AttentionBackwardArgs a, float* delta) {
  const AttentionProblem& p = a.p;
  const int64_t row = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= p.batches * p.tq * p.heads) return;
  const T *dy = static_cast<const T*>(a.dy) + row * p.dim, *y = static_cast<const T*>(a.y) + row * p.dim;
  float sum = 0;
  for (int c = threadIdx.x % 32; c < p.dim; c += 32) sum = fmaf(to_float(dy[c]), to_float(y[c]), sum);
  sum = warp_sum(sum);
  const int64_t b = row / p.heads / p.tq, i = row / p.heads % p.tq, h = row % p.heads;
  if (threadIdx.x % 32 == 0) delta[(b * p.heads + h) * p.tq + i] = sum;
}

// unseen[b][kv][c] = the sum of dy over the queries that see nothing, of all heads that share the keys, over tk.
template <class T>
__global__ void __launch_bounds__(128) attention_unseen(AttentionBackwardArgs a, float* unseen) {
  DEEM_SHARED(float, partial, 4 * 32);
  const AttentionProblem& p = a.p;
  const int64_t pair = blockIdx.x, b = pair / p.kv_heads, kv = pair % p.kv_heads, group = p.heads / p.kv_heads;
  const int64_t rows = first_to_see(plan_of(p, b), int(p.tq), 0) * group;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t from = 0; from < p.dim; from += 32) {
    float sum = 0;
    if (from + lane < p.dim)
      for (int64_t r = warp; r < rows; r += 4) {
        const int64_t i = r / group, h = kv * group + r % group;
        sum += to_float(static_cast<const T*>(a.dy)[((b * p.tq + i) * p.heads + h) * p.dim + from + lane]);
      }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && from + lane < p.dim)
      unseen[pair * p.dim + from + lane] =
          (partial[lane] + partial[lane + 32] + partial[lane + 64] + partial[lane + 96]) / float(p.tk);
    __syncthreads();
  }
}

// dq[i] = the sum over the batch of dq_sum, in order.
template <class T>
__global__ void __launch_bounds__(256) sum_batches(const float* dq_sum, T* dq, int64_t n, int64_t batches) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= n) return;
  float sum = dq_sum[i];
  for (int64_t b = 1; b < batches; b++) sum += dq_sum[b * n + i];
  dq[i] = from_float<T>(sum);
}

template <class T, int COLUMNS>
static void simt(const AttentionBackwardArgs& a, const BackwardExtra& extra) {
  const AttentionProblem& p = a.p;
  const int slices = int((p.dim + COLUMNS - 1) / COLUMNS), tiles_q = tiles_of(p.tq), tiles_k = tiles_of(p.tk);
  if (p.tq > 0)
    DEEM_LAUNCH((attention_dq_simt<T, COLUMNS>), dim3(unsigned(p.batches * p.heads * slices * tiles_q)),
                dim3(kSimtThreads), 0, stream(), a, tiles_q, slices, extra);
  if (a.dk || a.dv)
    DEEM_LAUNCH((attention_dkv_simt<T, COLUMNS>), dim3(unsigned(p.batches * p.kv_heads * slices * tiles_k)),
                dim3(kSimtThreads), 0, stream(), a, tiles_k, slices, extra);
}

template <class T, int D>
static void mma(const AttentionBackwardArgs& a, const BackwardExtra& extra) {
  const AttentionProblem& p = a.p;
  const int tiles_q = tiles_of(p.tq), tiles_k = tiles_of(p.tk);
  if (p.tq > 0)
    DEEM_LAUNCH((attention_dq_mma<T, D>), dim3(unsigned(p.batches * p.heads * tiles_q)), dim3(128),
                kBackwardQueriesShared<D>, stream(), a, tiles_q, extra);
  if (a.dk || a.dv)
    DEEM_LAUNCH((attention_dkv_mma<T, D>), dim3(unsigned(p.batches * p.kv_heads * tiles_k)), dim3(128),
                kBackwardKeysShared<D>, stream(), a, tiles_k, extra);
}

static void attention_backward(const AttentionBackwardArgs& a) {
  const AttentionProblem& p = a.p;
  const int64_t rows = p.batches * p.heads * p.tq, pairs = p.batches * p.kv_heads;
  if (pairs == 0) return;
  Scratch<float> delta(rows), unseen(pairs * p.dim);
  dispatch(p.dtype, "attention_backward", [&]<class T>(T) {
    auto aligned = [&](const auto& x) { return aligned_rows(x, p.dim, sizeof(T)); };
    const BackwardExtra extra{delta.data(), unseen.data(),
                              aligned(p.q) && aligned(p.k) && aligned(p.v) && aligned(a.dy),
                              aligned(a.dq) && aligned(a.dk) && aligned(a.dv)};
    if (rows > 0)
      DEEM_LAUNCH((attention_delta<T>), dim3(unsigned((rows + 3) / 4)), dim3(128), 0, stream(), a, delta.data());
    DEEM_LAUNCH((attention_unseen<T>), dim3(unsigned(pairs)), dim3(128), 0, stream(), a, unseen.data());
    if (p.dim > kWidest) simt<T, kSimtSlice>(a, extra);
    else
      dispatch_width(p.dim, [&]<int D>(Width<D>) {
        if constexpr (sizeof(T) == 4) simt<T, D>(a, extra);
        else mma<T, D>(a, extra);
      });
    const int64_t n = a.q_batches * p.tq * p.heads * p.dim;
    if (a.dq && a.q_batches != p.batches && n > 0)
      DEEM_LAUNCH((sum_batches<T>), dim3(unsigned((n + 255) / 256)), dim3(256), 0, stream(), a.dq_sum,
                  static_cast<T*>(a.dq), n, p.batches / a.q_batches);
  });
}

DEEM_CUDA_KERNEL("attention_backward", attention_backward);

}  // namespace deem::cuda
