// cross_entropy reads the logits once, each thread with a running maximum and sum; its backward pass reads and writes them once.
// Rows may start at any address (32006 classes of bf16 do): 16-byte accesses between scalar ends.
#include "ops/loss.h"

#include <algorithm>

#include "cuda/rows.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace {

// Elements [0, head) and [tail, cols) of a row are read one by one, those between in packs.
struct Ends {
  int64_t head, tail;
};
template <class T>
DEEM_DEVICE Ends ends_of(const T* row, const T* other, int64_t cols) {
  const uintptr_t off = reinterpret_cast<uintptr_t>(row) % 16;
  if (reinterpret_cast<uintptr_t>(other) % 16 != off) return {cols, cols};
  const int64_t gap = int64_t((16 - off) % 16 / sizeof(T)), head = gap < cols ? gap : cols;
  return {head, head + (cols - head) / kVecWidth<T> * kVecWidth<T>};
}

// The maximum and the sum of exp(x - top) of what was seen. top starts at the lowest finite number, so that -inf adds 0.
struct Online {
  float top = -3.402823466e38f, sum = 0;

  template <int N>
  DEEM_DEVICE void add(const float (&v)[N]) {
    float most = v[0];
#pragma unroll
    for (int i = 1; i < N; i++) most = fmaxf(most, v[i]);
    if (most > top) {
      sum *= expf(top - most);
      top = most;
    }
#pragma unroll
    for (int i = 0; i < N; i++) sum += expf(v[i] - top);
  }
};

// One row to WARPS warps; blocks of four rows where that is one.
template <class T, int WARPS>
__global__ void __launch_bounds__(WARPS == 1 ? 128 : WARPS * 32) cross_entropy_rows(CrossEntropyArgs a) {
  using L = RowLayout<WARPS, kVecWidth<T>, 1>;
  constexpr int V = L::kV;
  for (int64_t row = int64_t(blockIdx.x) * L::kRows + L::place(); row < a.rows; row += int64_t(gridDim.x) * L::kRows) {
    const int64_t label = a.labels[row];
    if (label == a.ignore_index) {
      if (L::lane() == 0) a.lse[row] = a.loss[row] = 0;
      continue;
    }
    const T* x = static_cast<const T*>(a.logits) + row * a.cols;
    const Ends ends = ends_of(x, x, a.cols);
    Online seen;
    for (int64_t i = L::lane(); i < ends.head + a.cols - ends.tail; i += L::kThreads) {
      const float v[1] = {to_float(x[i < ends.head ? i : i - ends.head + ends.tail])};
      seen.add(v);
    }
#pragma unroll 4
    for (int64_t c = ends.head + L::lane() * V; c < ends.tail; c += L::kThreads * V) {
      float v[V];
      load_float(x + c, v);
      seen.add(v);
    }
    const float top = row_max<L>(seen.top), log_sum = logf(row_sum<L>(seen.sum * expf(seen.top - top)));
    if (L::lane() == 0) {
      a.lse[row] = top + log_sum;
      a.loss[row] = (top - to_float(x[label])) + log_sum;
    }
  }
}

template <class T, int WARPS>
__global__ void __launch_bounds__(WARPS == 1 ? 128 : WARPS * 32) cross_entropy_gradient(CrossEntropyBackwardArgs a) {
  using L = RowLayout<WARPS, kVecWidth<T>, 1>;
  constexpr int V = L::kV;
  const float scale = a.kept ? float(double(*a.dy) / double(a.kept)) : 0.0f;
  for (int64_t row = int64_t(blockIdx.x) * L::kRows + L::place(); row < a.rows; row += int64_t(gridDim.x) * L::kRows) {
    const T* x = static_cast<const T*>(a.logits) + row * a.cols;
    T* dx = static_cast<T*>(a.dlogits) + row * a.cols;
    const int64_t label = a.labels[row];
    const Ends ends = ends_of(x, static_cast<const T*>(dx), a.cols);
    const bool kept = label != a.ignore_index;
    const float lse = a.lse[row];
    for (int64_t i = L::lane(); i < ends.head + a.cols - ends.tail; i += L::kThreads) {
      const int64_t c = i < ends.head ? i : i - ends.head + ends.tail;
      const float p = expf(to_float(x[c]) - lse);
      dx[c] = from_float<T>(kept ? (c == label ? p - 1.0f : p) * scale : 0.0f);
    }
#pragma unroll 4
    for (int64_t c = ends.head + L::lane() * V; c < ends.tail; c += L::kThreads * V) {
      float v[V] = {};
      if (kept) {
        load_float(x + c, v);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const float p = expf(v[i] - lse);
          v[i] = (c + i == label ? p - 1.0f : p) * scale;
        }
      }
      store_float(dx + c, v);
    }
  }
}

constexpr int64_t kNarrow = 1024;  // classes up to which a warp does a row
constexpr int kWideWarps = 16;

unsigned blocks_for(int64_t rows, int64_t cols) {
  return unsigned(std::min(cols <= kNarrow ? (rows + 3) / 4 : rows, kMaxGrid));
}

void forward(const CrossEntropyArgs& a) {
  if (a.rows == 0) return;
  dispatch(a.dtype, "cross_entropy", [&]<class T>(T) {
    const dim3 grid(blocks_for(a.rows, a.cols));
    if (a.cols <= kNarrow) DEEM_LAUNCH((cross_entropy_rows<T, 1>), grid, dim3(128), 0, stream(), a);
    else DEEM_LAUNCH((cross_entropy_rows<T, kWideWarps>), grid, dim3(32 * kWideWarps), 0, stream(), a);
  });
}

void backward(const CrossEntropyBackwardArgs& a) {
  if (a.rows == 0) return;
  dispatch(a.dtype, "cross_entropy_backward", [&]<class T>(T) {
    const dim3 grid(blocks_for(a.rows, a.cols));
    if (a.cols <= kNarrow) DEEM_LAUNCH((cross_entropy_gradient<T, 1>), grid, dim3(128), 0, stream(), a);
    else DEEM_LAUNCH((cross_entropy_gradient<T, kWideWarps>), grid, dim3(32 * kWideWarps), 0, stream(), a);
  });
}

}  // namespace

DEEM_CUDA_KERNEL("cross_entropy", forward);
DEEM_CUDA_KERNEL("cross_entropy_backward", backward);

}  // namespace deem::cuda
