// The elementwise operations as tables, shared by all backends: each row is compiled where its kernels are, with that
// backend's exp, tanh and so on. Kernels assume contiguous, matching tensors unless they take Strided axes.
#pragma once
#include "core/kernel.h"
#include "ops/strided.h"

namespace deem {

// name, what the derivative is computed from, value of x, derivative; x is the input, y the value, s and t the numbers
// of the operation. A row's derivative may read x only where it keeps `input`, and y only where it keeps `output`.
// clang-format off
#define DEEM_UNARY_TABLE(ROW)                                                                                          \
  ROW(add_scalar, nothing, x + s,                 1.0f)                                                                \
  ROW(mul_scalar, nothing, x * s,                 s)                                                                   \
  ROW(neg,        nothing, -x,                    -1.0f)                                                               \
  ROW(exp,        output,  exp(x),                y)                                                                   \
  ROW(log,        input,   log(x),                1.0f / x)                                                            \
  ROW(sqrt,       output,  sqrt(x),               0.5f / y)                                                            \
  ROW(square,     input,   x * x,                 2.0f * x)                                                            \
  ROW(abs,        input,   abs(x),                x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f)                                 \
  ROW(tanh,       output,  tanh(x),               1.0f - y * y)                                                        \
  ROW(sigmoid,    output,  sigmoid(x),            y * (1.0f - y))                                                      \
  ROW(relu,       output,  x < 0 ? 0.0f : x,      y > 0 ? 1.0f : 0.0f)                                                 \
  ROW(silu,       input,   x * sigmoid(x),        sigmoid(x) * (1.0f + x * sigmoid(-x)))                               \
  ROW(gelu,       input,   x * normal_cdf(x),     normal_cdf(x) + x * normal_pdf(x))                                   \
  ROW(gelu_tanh,  input,   gelu_tanh(x),          gelu_tanh_derivative(x))                                             \
  ROW(quick_gelu, input,   x * sigmoid(1.702f*x), sigmoid(1.702f*x) * (1.0f + 1.702f * x * sigmoid(-1.702f*x)))        \
  ROW(clamp,      input,   x < s ? s : x > t ? t : x, x >= s && x <= t ? 1.0f : 0.0f)

// name, value of a and b. Derivatives are sums over broadcast axes: see elementwise.cpp.
#define DEEM_BINARY_TABLE(ROW) \
  ROW(add, a + b)              \
  ROW(sub, a - b)              \
  ROW(mul, a * b)              \
  ROW(div, a / b)
// clang-format on

enum class Keeps : uint8_t { nothing, input, output };

#define DEEM_NAME_ROW(name, ...) name,
enum class Unary : uint8_t { DEEM_UNARY_TABLE(DEEM_NAME_ROW) };
enum class Binary : uint8_t { DEEM_BINARY_TABLE(DEEM_NAME_ROW) };
#undef DEEM_NAME_ROW

struct UnaryArgs {
  Unary op;
  const void* x;
  void* y;
  int64_t n;
  float s, t;
  DType dtype;
};
extern Kernel<UnaryArgs> unary_kernel;

struct UnaryBackwardArgs {
  Unary op;
  const void* dy;
  const void* kept;  // x or y, as the table says; null for `nothing`
  void* dx;
  int64_t n;
  float s, t;
  DType dtype;
};
extern Kernel<UnaryBackwardArgs> unary_backward_kernel;

struct BinaryArgs {
  Binary op;
  void* y;  // may be a or b
  const void *a, *b;
  Strided<3> axes;  // of y, a, b; the innermost strides are 1 for y and 0 or 1 for the others
  DType dtype;      // floating, or i64 (not div)
};
extern Kernel<BinaryArgs> binary_kernel;

struct WhereArgs {
  void* y;
  const uint8_t* mask;
  const void *a, *b;
  Strided<4> axes;  // of y, mask, a, b; innermost strides as in BinaryArgs
  int64_t width;    // bytes of an element
};
extern Kernel<WhereArgs> where_kernel;

struct CastArgs {
  const void* x;
  void* y;
  int64_t n;
  DType from, to;
};
extern Kernel<CastArgs> cast_kernel;

}  // namespace deem
