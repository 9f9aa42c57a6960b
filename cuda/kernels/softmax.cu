// softmax: y = exp(x - max) / sum; log_softmax: y = x - max - log(sum). Rows beyond what registers hold are read three times.
#include "ops/softmax.h"

#include <algorithm>

#include "cuda/rows.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace {

template <class T, class L>
__global__ void __launch_bounds__(L::kBlock) softmax_rows(SoftmaxArgs a) {
  constexpr int V = L::kV;
  const int packs = int(a.cols / V);
  for (int64_t row = int64_t(blockIdx.x) * L::kRows + L::place(); row < a.rows; row += int64_t(gridDim.x) * L::kRows) {
    const Row<T, L> x(static_cast<const T*>(a.x) + row * a.cols, packs);
    T* y = static_cast<T*>(a.y) + row * a.cols;
    float top = -INFINITY, sum = 0;
    x.each(packs, [&](int64_t, const float(&v)[V]) {
#pragma unroll
      for (int i = 0; i < V; i++) top = fmaxf(top, v[i]);
    });
    top = row_max<L>(top);
    x.each(packs, [&](int64_t, const float(&v)[V]) {
#pragma unroll
      for (int i = 0; i < V; i++) sum += expf(v[i] - top);
    });
    sum = row_sum<L>(sum);
    const float inverse = 1.0f / sum, log_sum = logf(sum);
    x.each(packs, [&](int64_t c, float(&v)[V]) {
#pragma unroll
      for (int i = 0; i < V; i++) v[i] = a.log ? v[i] - top - log_sum : expf(v[i] - top) * inverse;
      store_float(y + c, v);
    });
  }
}

// softmax: dx = y * (dy - sum(dy * y)); log_softmax: dx = dy - exp(y) * sum(dy).
template <class T, class L>
__global__ void __launch_bounds__(L::kBlock, L::kV == 1 ? 1024 / L::kBlock : 1)
    softmax_backward_rows(SoftmaxBackwardArgs a) {
  constexpr int V = L::kV;
  const int packs = int(a.cols / V);
  for (int64_t row = int64_t(blockIdx.x) * L::kRows + L::place(); row < a.rows; row += int64_t(gridDim.x) * L::kRows) {
    const Row<T, L> dy(static_cast<const T*>(a.dy) + row * a.cols, packs);
    const Row<T, L> y(static_cast<const T*>(a.y) + row * a.cols, packs);
    T* dx = static_cast<T*>(a.dx) + row * a.cols;
    float sum = 0;
    for_packs<L>(packs, [&](int k, int pack) {
      float g[V], v[V];
      dy.get(k, pack, g);
      y.get(k, pack, v);
#pragma unroll
      for (int i = 0; i < V; i++) sum += a.log ? g[i] : g[i] * v[i];
    });
    sum = row_sum<L>(sum);
    for_packs<L>(packs, [&](int k, int pack) {
      float g[V], v[V];
      dy.get(k, pack, g);
      y.get(k, pack, v);
#pragma unroll
      for (int i = 0; i < V; i++) g[i] = a.log ? g[i] - expf(v[i]) * sum : v[i] * (g[i] - sum);
      store_float(dx + int64_t(pack) * V, g);
    });
  }
}

template <class L>
dim3 grid_for(int64_t rows) {
  return dim3(unsigned(std::min((rows + L::kRows - 1) / L::kRows, kMaxGrid)));
}

void forward(const SoftmaxArgs& a) {
  if (a.rows == 0) return;
  dispatch(a.dtype, "softmax", [&]<class T>(T) {
    dispatch_rows<T>(a.cols, aligned_to(16, a.x, a.y), "softmax", [&]<class L>(L) {
      DEEM_LAUNCH((softmax_rows<T, L>), grid_for<L>(a.rows), dim3(L::kBlock), 0, stream(), a);
    });
  });
}

void backward(const SoftmaxBackwardArgs& a) {
  if (a.rows == 0) return;
  dispatch(a.dtype, "softmax_backward", [&]<class T>(T) {
    dispatch_rows<T>(a.cols, aligned_to(16, a.dy, a.y, a.dx), "softmax_backward", [&]<class L>(L) {
      DEEM_LAUNCH((softmax_backward_rows<T, L>), grid_for<L>(a.rows), dim3(L::kBlock), 0, stream(), a);
    });
  });
}

}  // namespace

DEEM_CUDA_KERNEL("softmax", forward);
DEEM_CUDA_KERNEL("softmax_backward", backward);

}  // namespace deem::cuda
