// The tables of ops/elementwise.h. The operation is a switch inside of the kernel: all threads take the same branch, once a
// pack of elements, and a kernel an operation would be ten times the code.
#include "ops/elementwise.h"

#include "cuda/math.cuh"
#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

// The names that the table calls.
__device__ inline float exp(float x) { return expf(x); }
__device__ inline float log(float x) { return logf(x); }
__device__ inline float sqrt(float x) { return sqrtf(x); }
__device__ inline float abs(float x) { return fabsf(x); }
__device__ inline float tanh(float x) { return tanhf(x); }

#define ROW(name, keeps, VALUE, DERIVATIVE)                                                                          \
  struct name##_row {                                                                                                \
    __device__ static float value([[maybe_unused]] float x, [[maybe_unused]] float s, [[maybe_unused]] float t) {    \
      return VALUE;                                                                                                  \
    }                                                                                                                \
    __device__ static float derivative([[maybe_unused]] float x, [[maybe_unused]] float y, [[maybe_unused]] float s, \
                                       [[maybe_unused]] float t) {                                                   \
      return DERIVATIVE;                                                                                             \
    }                                                                                                                \
  };
DEEM_UNARY_TABLE(ROW)
#undef ROW

#define ROW(name, VALUE)                  \
  struct name##_row {                     \
    template <class V>                    \
    __device__ static V value(V a, V b) { \
      return VALUE;                       \
    }                                     \
  };
DEEM_BINARY_TABLE(ROW)
#undef ROW

// ---- one input ----------------------------------------------------------------------------------------------------

template <class T>
struct UnaryWalk {
  Unary op;
  const T* x;
  T* y;
  float s, t;

  template <class Row, int N>
  __device__ void row(float (&v)[N]) const {
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = Row::value(v[k], s, t);
  }
  template <int N>
  __device__ void at(int64_t i, int count) const {
    float v[N];
    read_floats<N>(x + i, count, v);
#define CASE(name, ...) \
  case Unary::name: row<name##_row, N>(v); break;
    switch (op) { DEEM_UNARY_TABLE(CASE) }
#undef CASE
    write_floats<N>(y + i, v, count);
  }
};

void unary(const UnaryArgs& a) {
  dispatch(a.dtype, "unary", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const UnaryWalk<T> f{a.op, static_cast<const T*>(a.x), static_cast<T*>(a.y), a.s, a.t};
    for_flat<N>(f, a.n, is_aligned<N>(f.x) && is_aligned<N>(f.y));
  });
}

template <class T>
struct UnaryBackwardWalk {
  Unary op;
  const T *dy, *kept;
  T* dx;
  float s, t;

  template <class Row, int N>
  __device__ void row(float (&g)[N], const float (&v)[N]) const {
#pragma unroll
    for (int k = 0; k < N; k++) g[k] *= Row::derivative(v[k], v[k], s, t);
  }
  template <int N>
  __device__ void at(int64_t i, int count) const {
    float g[N], v[N] = {};
    read_floats<N>(dy + i, count, g);
    if (kept) read_floats<N>(kept + i, count, v);
#define CASE(name, ...) \
  case Unary::name: row<name##_row, N>(g, v); break;
    switch (op) { DEEM_UNARY_TABLE(CASE) }
#undef CASE
    write_floats<N>(dx + i, g, count);
  }
};

void unary_backward(const UnaryBackwardArgs& a) {
  dispatch(a.dtype, "unary_backward", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const UnaryBackwardWalk<T> f{
        a.op, static_cast<const T*>(a.dy), static_cast<const T*>(a.kept), static_cast<T*>(a.dx), a.s, a.t};
    for_flat<N>(f, a.n, is_aligned<N>(f.dy) && is_aligned<N>(f.kept) && is_aligned<N>(f.dx));
  });
}

// ---- two inputs ---------------------------------------------------------------------------------------------------

// What is computed in: floats, or integers that wrap round, which signed arithmetic may not.
template <class T>
struct Wide {
  using type = float;
  __device__ static float from(T v) { return to_float(v); }
  __device__ static T to(float v) { return from_float<T>(v); }
};
template <>
struct Wide<int64_t> {
  using type = uint64_t;
  __device__ static uint64_t from(int64_t v) { return uint64_t(v); }
  __device__ static int64_t to(uint64_t v) { return int64_t(v); }
};

// A run of one operand: a pack of it, or its one number.
template <int N, class T>
__device__ inline Vec<T, N> read_run(const T* p, bool row, int count) {
  if (row) return read_pack<N>(p, count);
  Vec<T, N> v;
#pragma unroll
  for (int k = 0; k < N; k++) v.v[k] = *p;
  return v;
}

template <class T>
struct BinaryWalk {
  Binary op;
  T* y;
  const T *a, *b;
  bool row_a, row_b;  // false: one number for a whole run

  template <class Row, int N>
  __device__ static void row(Vec<T, N>& u, const Vec<T, N>& v) {
#pragma unroll
    for (int k = 0; k < N; k++) u.v[k] = Wide<T>::to(Row::value(Wide<T>::from(u.v[k]), Wide<T>::from(v.v[k])));
  }
  template <int N>
  __device__ void at(const int64_t (&from)[3], int count) const {
    Vec<T, N> u = read_run<N>(a + from[1], row_a, count);
    const Vec<T, N> v = read_run<N>(b + from[2], row_b, count);
    switch (op) {
      case Binary::add: row<add_row>(u, v); break;
      case Binary::sub: row<sub_row>(u, v); break;
      case Binary::mul: row<mul_row>(u, v); break;
      case Binary::div:
        if constexpr (sizeof(T) < 8) row<div_row>(u, v);
        break;
    }
    write_pack<N>(y + from[0], u, count);
  }
};

template <class T>
void binary_as(const BinaryArgs& a) {
  constexpr int N = kVecWidth<T>;
  const int last = a.axes.ndim - 1;
  const BinaryWalk<T> f{a.op,
                        static_cast<T*>(a.y),
                        static_cast<const T*>(a.a),
                        static_cast<const T*>(a.b),
                        a.axes.strides[1][last] != 0,
                        a.axes.strides[2][last] != 0};
  for_strided<N>(f, a.axes,
                 packs_fit<N>(a.axes, 0, f.y) && packs_fit<N>(a.axes, 1, f.a) && packs_fit<N>(a.axes, 2, f.b));
}

void binary(const BinaryArgs& a) {
  if (a.dtype == DType::i64) {
    if (a.op == Binary::div) throw_not_float("div", a.dtype);
    return binary_as<int64_t>(a);
  }
  dispatch(a.dtype, "binary", [&]<class T>(T) { binary_as<T>(a); });
}

// ---- where, cast --------------------------------------------------------------------------------------------------

template <class U>
struct WhereWalk {
  U* y;
  const uint8_t* mask;
  const U *a, *b;
  bool row_mask, row_a, row_b;

  template <int N>
  __device__ void at(const int64_t (&from)[4], int count) const {
    const Vec<uint8_t, N> m = read_run<N>(mask + from[1], row_mask, count);
    Vec<U, N> u = read_run<N>(a + from[2], row_a, count);
    const Vec<U, N> v = read_run<N>(b + from[3], row_b, count);
#pragma unroll
    for (int k = 0; k < N; k++)
      if (!m.v[k]) u.v[k] = v.v[k];
    write_pack<N>(y + from[0], u, count);
  }
};

template <class U>
void where_as(const WhereArgs& w) {
  constexpr int N = sizeof(U) == 1 ? 8 : kVecWidth<U>;
  const int last = w.axes.ndim - 1;
  const WhereWalk<U> f{static_cast<U*>(w.y),         w.mask,
                       static_cast<const U*>(w.a),   static_cast<const U*>(w.b),
                       w.axes.strides[1][last] != 0, w.axes.strides[2][last] != 0,
                       w.axes.strides[3][last] != 0};
  for_strided<N>(f, w.axes,
                 packs_fit<N>(w.axes, 0, f.y) && packs_fit<N>(w.axes, 1, f.mask) && packs_fit<N>(w.axes, 2, f.a) &&
                     packs_fit<N>(w.axes, 3, f.b));
}

void where(const WhereArgs& w) {
  switch (w.width) {
    case 1: return where_as<uint8_t>(w);
    case 2: return where_as<uint16_t>(w);
    case 4: return where_as<uint32_t>(w);
    default: return where_as<uint64_t>(w);
  }
}

template <class T>
struct Limits;  // of integers; `top` is the first float above them
template <>
struct Limits<int64_t> {
  static constexpr int64_t low = INT64_MIN, high = INT64_MAX;
  static constexpr float top = 0x1p63f;
};
template <>
struct Limits<int32_t> {
  static constexpr int64_t low = INT32_MIN, high = INT32_MAX;
  static constexpr float top = 0x1p31f;
};
template <>
struct Limits<uint8_t> {
  static constexpr int64_t low = 0, high = 255;
  static constexpr float top = 256.0f;
};

template <class T>
constexpr bool kFloating = true;
template <>
constexpr bool kFloating<int64_t> = false;
template <>
constexpr bool kFloating<int32_t> = false;
template <>
constexpr bool kFloating<uint8_t> = false;

// Towards zero and clamped; NaN becomes 0.
template <class To, class From>
__device__ inline To convert(From from) {
  if constexpr (kFloating<From> && kFloating<To>) {
    return from_float<To>(to_float(from));
  } else if constexpr (kFloating<To>) {
    return from_float<To>(float(from));
  } else if constexpr (kFloating<From>) {
    constexpr float low = float(Limits<To>::low), top = Limits<To>::top;
    const float v = to_float(from);
    if (v >= top) return To(Limits<To>::high);
    if (v <= low) return To(Limits<To>::low);
    return v > low ? To(v) : To(0);
  } else {
    const int64_t v = int64_t(from);
    return To(v < Limits<To>::low ? Limits<To>::low : v > Limits<To>::high ? Limits<To>::high : v);
  }
}

constexpr int kCastPack = 4;

template <class From>
struct CastWalk {
  const From* x;
  void* y;
  DType to;

  template <class To, int N>
  __device__ void as(const Vec<From, N>& v, int64_t i, int count) const {
    Vec<To, N> out;
#pragma unroll
    for (int k = 0; k < N; k++) out.v[k] = convert<To>(v.v[k]);
    write_pack<N>(static_cast<To*>(y) + i, out, count);
  }
  template <int N>
  __device__ void at(int64_t i, int count) const {
    const Vec<From, N> v = read_pack<N>(x + i, count);
    switch (to) {
      case DType::f32: return as<float>(v, i, count);
      case DType::bf16: return as<__nv_bfloat16>(v, i, count);
      case DType::f16: return as<__half>(v, i, count);
      case DType::i64: return as<int64_t>(v, i, count);
      case DType::i32: return as<int32_t>(v, i, count);
      case DType::u8: return as<uint8_t>(v, i, count);
    }
  }
};

template <class From>
void cast_from(const CastArgs& a) {
  const CastWalk<From> f{static_cast<const From*>(a.x), a.y, a.to};
  const bool to_fits = reinterpret_cast<uintptr_t>(a.y) % (kCastPack * size_of(a.to)) == 0;
  for_flat<kCastPack>(f, a.n, is_aligned<kCastPack>(f.x) && to_fits);
}

void cast(const CastArgs& a) {
  switch (a.from) {
    case DType::f32: return cast_from<float>(a);
    case DType::bf16: return cast_from<__nv_bfloat16>(a);
    case DType::f16: return cast_from<__half>(a);
    case DType::i64: return cast_from<int64_t>(a);
    case DType::i32: return cast_from<int32_t>(a);
    case DType::u8: return cast_from<uint8_t>(a);
  }
}

}  // namespace

DEEM_CUDA_KERNEL("unary", unary);
DEEM_CUDA_KERNEL("unary_backward", unary_backward);
DEEM_CUDA_KERNEL("binary", binary);
DEEM_CUDA_KERNEL("where", where);
DEEM_CUDA_KERNEL("cast", cast);

}  // namespace deem::cuda
