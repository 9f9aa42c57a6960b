#include "ops/greater.h"

#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

template <class T>
struct GreaterWalk {
  const T* x;
  uint8_t* y;
  float limit;

  template <int N>
  __device__ void at(int64_t i, int count) const {
    float v[N];
    read_floats<N>(x + i, count, v);
    Vec<uint8_t, N> m;
#pragma unroll
    for (int k = 0; k < N; k++) m.v[k] = v[k] > limit;
    write_pack<N>(y + i, m, count);
  }
};

void greater(const GreaterArgs& a) {
  dispatch(a.dtype, "greater", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const GreaterWalk<T> f{static_cast<const T*>(a.x), a.y, a.limit};
    for_flat<N>(f, a.n, is_aligned<N>(f.x) && is_aligned<N>(f.y));
  });
}

}  // namespace

DEEM_CUDA_KERNEL("greater", greater);

}  // namespace deem::cuda
