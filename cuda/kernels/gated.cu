// A row of x is two halves, a and b; geglu is a * gelu(b), swiglu is silu(a) * b.
#include "ops/gated.h"

#include "cuda/math.cuh"
#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

template <class T>
struct GatedWalk {
  Gate gate;
  const T* x;
  T* y;
  int64_t n;

  template <int N>
  __device__ void at(int64_t row, int64_t column, int count) const {
    const T* from = x + row * 2 * n + column;
    float a[N], b[N];
    read_floats<N>(from, count, a);
    read_floats<N>(from + n, count, b);
    if (gate == Gate::geglu) {
#pragma unroll
      for (int k = 0; k < N; k++) a[k] *= b[k] * normal_cdf(b[k]);
    } else {
#pragma unroll
      for (int k = 0; k < N; k++) a[k] *= sigmoid(a[k]) * b[k];
    }
    write_floats<N>(y + row * n + column, a, count);
  }
};

template <class T>
struct GatedBackwardWalk {
  Gate gate;
  const T *dy, *x;
  T* dx;
  int64_t n;

  template <int N>
  __device__ void at(int64_t row, int64_t column, int count) const {
    const T* from = x + row * 2 * n + column;
    float g[N], a[N], b[N];
    read_floats<N>(dy + row * n + column, count, g);
    read_floats<N>(from, count, a);
    read_floats<N>(from + n, count, b);
    if (gate == Gate::geglu) {
#pragma unroll
      for (int k = 0; k < N; k++) {
        const float v = b[k], cdf = normal_cdf(v), u = a[k];
        a[k] = g[k] * v * cdf;
        b[k] = g[k] * u * (cdf + v * normal_pdf(v));
      }
    } else {
#pragma unroll
      for (int k = 0; k < N; k++) {
        const float u = a[k], s = sigmoid(u);
        a[k] = g[k] * b[k] * s * (1.0f + u * (1.0f - s));
        b[k] = g[k] * u * s;
      }
    }
    T* to = dx + row * 2 * n + column;
    write_floats<N>(to, a, count);
    write_floats<N>(to + n, b, count);
  }
};

void gated(const GatedArgs& a) {
  dispatch(a.dtype, "gated", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const GatedWalk<T> f{a.gate, static_cast<const T*>(a.x), static_cast<T*>(a.y), a.n};
    for_rows<N>(f, a.rows, a.n, a.n % N == 0 && is_aligned<N>(f.x) && is_aligned<N>(f.y));
  });
}

void gated_backward(const GatedBackwardArgs& a) {
  dispatch(a.dtype, "gated_backward", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const GatedBackwardWalk<T> f{a.gate, static_cast<const T*>(a.dy), static_cast<const T*>(a.x), static_cast<T*>(a.dx),
                                 a.n};
    for_rows<N>(f, a.rows, a.n, a.n % N == 0 && is_aligned<N>(f.dy) && is_aligned<N>(f.x) && is_aligned<N>(f.dx));
  });
}

}  // namespace

DEEM_CUDA_KERNEL("gated", gated);
DEEM_CUDA_KERNEL("gated_backward", gated_backward);

}  // namespace deem::cuda
