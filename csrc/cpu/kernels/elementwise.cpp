#include "ops/elementwise.h"

#include <cstring>

#include "cpu/kernels/gelu_words.h"
#include "cpu/row.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

namespace deem::DEEM_ISA {

DEEM_INLINE float sqrt(float x) { return std::sqrt(x); }
DEEM_INLINE float abs(float x) { return std::fabs(x); }

// What bf16 results need: relative errors under 2e-5, where rounding costs up to 4e-3, so that 3 in a thousand round to the other neighbour. f16, which
// rounds to 5e-4, takes the full functions.
namespace brief {

// 2^x for -126.5 < x <= 128, 0 from -125.5 down, relative error 3e-6: a minimax polynomial of 2^(x - n), doubled, times 2^(n - 1), as
// exp of cpu/simd.h.
DEEM_INLINE float exp2(float x) {
  constexpr float kUnit = 12582912.0f;  // 1.5 * 2^23
  float t = x + kUnit;
  float r = x - (t - kUnit);
  float p = 1.91402022e-2f;
  p = p * r + 1.11835725e-1f;
  p = p * r + 4.80494899e-1f;
  p = p * r + 1.38624362f;
  p = p * r + 1.99999852f;
  return p * std::bit_cast<float>((std::bit_cast<uint32_t>(t) << 23) + (uint32_t(126) << 23));
}
DEEM_INLINE float exp(float x) {
  float y = exp2(x * 1.44269504f);
  y = x < -87.4f ? 0.0f : y;
  return x > 89.0f ? __builtin_inff() : y;
}
DEEM_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

// As normal_tail of cpu/simd.h with fewer terms, in 1 / (1 + 0.36 |x|).
DEEM_INLINE float normal_tail(float x) {
  float t = 1.0f / (1.0f + 0.36f * std::fabs(x)), p = -9.92798115e-2f, s = x * x;
  p = p * t + 2.56407455e-1f;
  p = p * t + 3.31124600e-2f;
  p = p * t + 1.69621477e-1f;
  p = p * t + 1.39926114e-1f;
  p = p * t + 2.06928299e-4f;
  float y = p * exp2(s * -0.721347520f);
  return s > 174.6f ? 0.0f : y;
}
DEEM_INLINE float normal_cdf(float x) {
  float tail = normal_tail(x);
  return x < 0 ? tail : 1.0f - tail;
}
DEEM_INLINE float normal_pdf(float x) {
  float s = x * x, y = 0.39894228f * exp2(s * -0.721347520f);
  return s > 174.6f ? 0.0f : y;
}

}  // namespace brief

// 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x sigmoid(2u).
DEEM_INLINE float tanh_argument(float x) { return 1.59576912f * (x + 0.044715f * x * x * x); }
// Where sigmoid(2u) is 0 or 1 beyond doubt, and x * x does not overflow.
DEEM_INLINE float within_16(float x) { return x < -16.0f ? -16.0f : x > 16.0f ? 16.0f : x; }
// From s = sigmoid(2u).
DEEM_INLINE float gelu_tanh_slope(float x, float s) {
  return s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 0.134145f * x * x);
}

#define ROW(name, keeps, VALUE, DERIVATIVE)                                                                           \
  struct name##_row {                                                                                                 \
    DEEM_INLINE static float value([[maybe_unused]] float x, [[maybe_unused]] float s, [[maybe_unused]] float t) {    \
      return VALUE;                                                                                                   \
    }                                                                                                                 \
    DEEM_INLINE static float derivative([[maybe_unused]] float x, [[maybe_unused]] float y, [[maybe_unused]] float s, \
                                        [[maybe_unused]] float t) {                                                   \
      return DERIVATIVE;                                                                                              \
    }                                                                                                                 \
  };
#define ROWS                                                                     \
  DEEM_INLINE float gelu_tanh(float x) { return x * sigmoid(tanh_argument(x)); } \
  DEEM_INLINE float gelu_tanh_derivative(float v) {                              \
    return gelu_tanh_slope(within_16(v), sigmoid(tanh_argument(within_16(v))));  \
  }                                                                              \
  DEEM_UNARY_TABLE(ROW)
namespace full {
ROWS
}
namespace brief {
ROWS
}
#undef ROWS
#undef ROW

#define ROW(name, ...)             \
  template <class T>               \
  struct name##_of {               \
    using row = full::name##_row;  \
  };                               \
  template <>                      \
  struct name##_of<bf16> {         \
    using row = brief::name##_row; \
  };
DEEM_UNARY_TABLE(ROW)
#undef ROW

#define ROW(name, VALUE)                   \
  struct name##_row {                      \
    template <class V>                     \
    DEEM_INLINE static V value(V a, V b) { \
      return VALUE;                        \
    }                                      \
  };
DEEM_BINARY_TABLE(ROW)
#undef ROW

// ---- one input ----------------------------------------------------------------------------------------------------

// Numbers of 16 bits are widened some at a time, and rounded as a whole afterwards.
constexpr int64_t kWidened = 1024;

template <class Row>
DEEM_INLINE void values(const float* x, float* y, int64_t n, float s, float t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = Row::value(x[i], s, t);
}
// dx = dy times the derivative at what was kept.
template <class Row>
DEEM_INLINE void derivatives(const float* dy, const float* kept, float* dx, int64_t n, float s, float t) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * Row::derivative(kept[i], kept[i], s, t);
}

template <class Row, class T>
static void unary_rows(const UnaryArgs& a) {
  const T* x = (const T*)a.x;
  T* y = (T*)a.y;
  parallel_for(a.n, 2, [&](int64_t begin, int64_t end) {
    produce(y, begin, end, is_streamed<T>(a.n), [&](T* to, int64_t first, int64_t count) DEEM_ALWAYS {
      if constexpr (sizeof(T) == sizeof(float)) return values<Row>(x + first, to, count, a.s, a.t);
#if DEEM_ISA_INDEX >= 3
      if constexpr (__is_same(Row, brief::gelu_row)) return bf16_gelu_row(x + first, to, count);
#endif
      alignas(kCacheLine) float wide[kWidened];
      for (int64_t i = 0, n; i < count; i += n) {
        n = min(kWidened, count - i);
        convert_row(x + first + i, n, wide);
        values<Row>(wide, wide, n, a.s, a.t);
        convert_row(wide, n, to + i);
      }
    });
  });
}

template <class Row, class T>
static void unary_backward_rows(const UnaryBackwardArgs& a) {
  const T *dy = (const T*)a.dy, *kept = (const T*)(a.kept ? a.kept : a.dy);
  T* dx = (T*)a.dx;
  parallel_for(a.n, 3, [&](int64_t begin, int64_t end) {
    produce(dx, begin, end, is_streamed<T>(a.n), [&](T* to, int64_t first, int64_t count) DEEM_ALWAYS {
      if constexpr (sizeof(T) == sizeof(float)) return derivatives<Row>(dy + first, kept + first, to, count, a.s, a.t);
      alignas(kCacheLine) float wide[kWidened], wide_kept[kWidened];
      for (int64_t i = 0, n; i < count; i += n) {
        n = min(kWidened, count - i);
        convert_row(dy + first + i, n, wide);
        convert_row(kept + first + i, n, wide_kept);
        derivatives<Row>(wide, wide_kept, wide, n, a.s, a.t);
        convert_row(wide, n, to + i);
      }
    });
  });
}

#define FORWARD_CASE(name, ...) \
  case Unary::name: return unary_rows<typename name##_of<T>::row, T>(a);

static void unary(const UnaryArgs& a) {
  dispatch_float(a.dtype, "unary", [&]<class T>(T) {
    switch (a.op) { DEEM_UNARY_TABLE(FORWARD_CASE) }
  });
}

#define BACKWARD_CASE(name, ...) \
  case Unary::name: return unary_backward_rows<typename name##_of<T>::row, T>(a);

static void unary_backward(const UnaryBackwardArgs& a) {
  dispatch_float(a.dtype, "unary_backward", [&]<class T>(T) {
    switch (a.op) { DEEM_UNARY_TABLE(BACKWARD_CASE) }
  });
}

// ---- two inputs ---------------------------------------------------------------------------------------------------

// Rows of n numbers, `steps` apart; an operand without a row of its own is one number a row.
template <class Row, class T, bool RowA, bool RowB>
[[gnu::noinline]] static void binary_stack(T* y, const T* a, const T* b, int64_t rows, const int64_t (&steps)[3],
                                           int64_t n) {
  for (; rows > 0; rows--, y += steps[0], a += steps[1], b += steps[2]) {
    if constexpr (dtype_of<T>::value == DType::i64) {
      const uint64_t one_a = uint64_t(*a), one_b = uint64_t(*b);  // they wrap round, which signed arithmetic may not
#pragma omp simd
      for (int64_t i = 0; i < n; i++)
        y[i] = int64_t(Row::value(RowA ? uint64_t(a[i]) : one_a, RowB ? uint64_t(b[i]) : one_b));
    } else {
      const Vec one_a = load(a) - Vec{}, one_b = load(b) - Vec{};  // in every lane
      for_row(n, [&](int64_t i, int, auto part) DEEM_ALWAYS {
        put(y + i, Row::value(RowA ? get(a + i, part) : one_a, RowB ? get(b + i, part) : one_b), part);
      });
    }
  }
}

template <class Row, class T>
static void binary_rows(const BinaryArgs& args) {
  const int last = args.axes.ndim - 1;
  const bool row_a = args.axes.strides[1][last] != 0, row_b = args.axes.strides[2][last] != 0;
  const auto stack = row_a && row_b ? binary_stack<Row, T, true, true>
                     : row_a        ? binary_stack<Row, T, true, false>
                     : row_b        ? binary_stack<Row, T, false, true>
                                    : binary_stack<Row, T, false, false>;
  int64_t numbers = 1;
  for (int d = 0; d <= last; d++) numbers *= args.axes.shape[d];
  const bool streamed = is_streamed<T>(numbers);
  for_stacks(args.axes, 1, [&](const int64_t(&at)[3], int64_t rows, const int64_t(&steps)[3], int64_t n) {
    T* y = (T*)args.y + at[0];
    const T *a = (const T*)args.a + at[1], *b = (const T*)args.b + at[2];
    if (rows > 1) return stack(y, a, b, rows, steps, n);
    produce(y, 0, n, streamed, [&](T* to, int64_t first, int64_t count) {
      stack(to, a + (row_a ? first : 0), b + (row_b ? first : 0), 1, steps, count);
    });
  });
}

#define BINARY_CASE(name, ...) \
  case Binary::name: return binary_rows<name##_row, T>(a);

static void binary(const BinaryArgs& a) {
  if (a.dtype == DType::i64) {
    switch (a.op) {
      case Binary::add: return binary_rows<add_row, int64_t>(a);
      case Binary::sub: return binary_rows<sub_row, int64_t>(a);
      case Binary::mul: return binary_rows<mul_row, int64_t>(a);
      case Binary::div: throw_not_float("div", a.dtype);
    }
  }
  dispatch_float(a.dtype, "binary", [&]<class T>(T) {
    switch (a.op) { DEEM_BINARY_TABLE(BINARY_CASE) }
  });
}

// ---- where, cast --------------------------------------------------------------------------------------------------

// Both sides are read and one is chosen, so that the loop vectorises; a side that is one number is read once.
template <bool RowA, bool RowB, class U>
[[gnu::noinline]] static void choose(U* y, const uint8_t* mask, const U* a, const U* b, int64_t n) {
  const U first_a = *a, first_b = *b;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const U u = RowA ? a[i] : first_a, v = RowB ? b[i] : first_b;
    y[i] = mask[i] ? u : v;
  }
}

template <class U>
static void where_as(const WhereArgs& w) {
  const int last = w.axes.ndim - 1;
  const bool row_mask = w.axes.strides[1][last], row_a = w.axes.strides[2][last], row_b = w.axes.strides[3][last];
  for_runs<4>(w.axes, 2, [&](const int64_t* at, int64_t n) {
    U* y = (U*)w.y + at[0];
    const uint8_t* mask = w.mask + at[1];
    const U *a = (const U*)w.a + at[2], *b = (const U*)w.b + at[3];
    if (!row_mask) {  // the whole run from one side
      const U* from = *mask ? a : b;
      if (*mask ? row_a : row_b) memcpy(y, from, size_t(n) * sizeof(U));
      else
        for (int64_t i = 0; i < n; i++) y[i] = *from;
    } else if (row_a) {
      row_b ? choose<true, true>(y, mask, a, b, n) : choose<true, false>(y, mask, a, b, n);
    } else {
      row_b ? choose<false, true>(y, mask, a, b, n) : choose<false, false>(y, mask, a, b, n);
    }
  });
}

static void where(const WhereArgs& w) {
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
constexpr bool kFloating =
    dtype_of<T>::value == DType::f32 || dtype_of<T>::value == DType::bf16 || dtype_of<T>::value == DType::f16;

template <class From, class To>
DEEM_INLINE void convert(const From* from, To* to) {
  if constexpr (kFloating<From> && kFloating<To>) {
    store(to, load(from));
  } else if constexpr (kFloating<To>) {
    store(to, float(*from));
  } else if constexpr (kFloating<From>) {
    float v = load(from);
    bool above = v >= Limits<To>::top, inside = v > float(Limits<To>::low) && !above;  // NaN is neither
    To cut = To(inside ? v : 0.0f);
    *to = above ? To(Limits<To>::high) : v <= float(Limits<To>::low) ? To(Limits<To>::low) : cut;
  } else {
    int64_t v = int64_t(*from);
    *to = To(v < Limits<To>::low ? Limits<To>::low : v > Limits<To>::high ? Limits<To>::high : v);
  }
}

template <class F>
DEEM_INLINE void dispatch_any(DType t, F&& f) {
  switch (t) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    case DType::i64: return f(int64_t{});
    case DType::i32: return f(int32_t{});
    case DType::u8: return f(uint8_t{});
  }
}

static void cast(const CastArgs& a) {
  dispatch_any(a.from, [&]<class From>(From) {
    dispatch_any(a.to, [&]<class To>(To) {
      parallel_for(a.n, 1, [&](int64_t begin, int64_t end) {
        const From* x = (const From*)a.x;
        produce((To*)a.y, begin, end, is_streamed<To>(a.n), [&](To* to, int64_t first, int64_t count) DEEM_ALWAYS {
#pragma omp simd
          for (int64_t i = 0; i < count; i++) convert(x + first + i, to + i);
        });
      });
    });
  });
}

static const Register r1{unary_kernel, Device::cpu, unary};
static const Register r2{unary_backward_kernel, Device::cpu, unary_backward};
static const Register r3{binary_kernel, Device::cpu, binary};
static const Register r4{where_kernel, Device::cpu, where};
static const Register r5{cast_kernel, Device::cpu, cast};

}  // namespace deem::DEEM_ISA
