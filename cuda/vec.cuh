// Vector loads and stores, and the floating types of tensors as float.
#pragma once
#include <cstring>

#include "core/dtype.h"
#include "cuda/device.cuh"

namespace deem::cuda {

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
  __host__ DEEM_DEVICE T& operator[](int i) { return v[i]; }
  __host__ DEEM_DEVICE const T& operator[](int i) const { return v[i]; }
};

// Elements of T in 16 bytes, the widest access of one thread.
template <class T>
constexpr int kVecWidth = 16 / int(sizeof(T));

// N elements from an address aligned to all of them: load_vec<8>(x + i).
template <int N, class T>
DEEM_DEVICE Vec<T, N> load_vec(const T* p) {
  check_aligned(p, sizeof(T) * N);
  return *reinterpret_cast<const Vec<T, N>*>(p);
}
template <class T, int N>
DEEM_DEVICE void store_vec(T* p, const Vec<T, N>& v) {
  check_aligned(p, sizeof(T) * N);
  *reinterpret_cast<Vec<T, N>*>(p) = v;
}

__host__ DEEM_DEVICE float to_float(float v) { return v; }
__host__ DEEM_DEVICE float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__host__ DEEM_DEVICE float to_float(__half v) { return __half2float(v); }

// Rounded to nearest even.
template <class T>
__host__ DEEM_DEVICE T from_float(float v) {
  if constexpr (sizeof(T) == 4) return v;
  else if constexpr (std::is_same_v<T, __half>) return __float2half_rn(v);
  else return __float2bfloat16_rn(v);
}

// N elements widened, and narrowed, by one vector access.
template <int N, class T>
DEEM_DEVICE void load_float(const T* p, float (&out)[N]) {
  const Vec<T, N> v = load_vec<N>(p);
#pragma unroll
  for (int i = 0; i < N; i++) out[i] = to_float(v.v[i]);
}
template <int N, class T>
DEEM_DEVICE void store_float(T* p, const float (&in)[N]) {
  Vec<T, N> v;
#pragma unroll
  for (int i = 0; i < N; i++) v.v[i] = from_float<T>(in[i]);
  store_vec(p, v);
}

// Two floats rounded into one register of an mma operand; `lo` is the element with the lower index.
DEEM_DEVICE uint32_t pack_bf16(float lo, float hi) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
DEEM_DEVICE uint32_t pack_f16(float lo, float hi) {
  const __half2 pair = __floats2half2_rn(lo, hi);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
template <class T>
DEEM_DEVICE uint32_t pack(float lo, float hi) {
  if constexpr (std::is_same_v<T, __half>) return pack_f16(lo, hi);
  else return pack_bf16(lo, hi);
}

// Calls f with a value of the device's type: dispatch(args.dtype, "layer_norm", [&]<class T>(T) { ... }).
template <class F>
void dispatch(DType t, const char* op, F&& f) {
  switch (t) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(__nv_bfloat16{});
    case DType::f16: return f(__half{});
    default: throw DTypeError(str("[", op, "] must be f32, bf16 or f16 but got type ", int(t)));
  }
}

}  // namespace deem::cuda
