// Products of every layout, in every dtype, at the edges of tiles and of alignment.
#include "ops/matmul.h"

#include <cstdlib>

#include "parity.h"

namespace deem::test {
namespace {

struct Shape {
  int64_t m, n, k, batch = 1;
  bool a_transposed = false, b_transposed = false;
  bool bias = false, wide = false;  // wide: c is f32
  int64_t pad = 0, c_pad = 0;       // elements between the rows of the operands, of c
  int64_t first = 0;                // elements before the operands, so that vectors do not fit
};

std::string name_of_case(const Shape& s, DType t) {
  return str(t, " ", s.m, "x", s.n, "x", s.k, " batch ", s.batch, s.a_transposed ? " a^T" : "",
             s.b_transposed ? " b^T" : "", s.bias ? " bias" : "", s.wide ? " wide" : "", " pad ", s.pad, "/", s.c_pad,
             " first ", s.first);
}

GemmOperand operand(const void* data, int64_t rows, int64_t cols, bool transposed, int64_t pad) {
  if (transposed) return {data, rows, cols, 1, rows + pad, cols * (rows + pad)};
  return {data, rows, cols, cols + pad, 1, rows * (cols + pad)};
}

// The CPU multiplies no f16.
void reference(const GemmArgs& g) {
  const f16 *a = static_cast<const f16*>(g.a.data), *b = static_cast<const f16*>(g.b.data);
  for (int64_t i = 0; i < g.batch; i++)
    for (int64_t r = 0; r < g.a.rows; r++)
      for (int64_t c = 0; c < g.b.cols; c++) {
        double sum = g.bias ? double(float(static_cast<const f16*>(g.bias)[c])) : 0;
        for (int64_t k = 0; k < g.a.cols; k++)
          sum += double(float(a[i * g.a.step + r * g.a.row_stride + k * g.a.col_stride])) *
                 double(float(b[i * g.b.step + k * g.b.row_stride + c * g.b.col_stride]));
        const int64_t at = (i * g.a.rows + r) * g.c_row_stride + c;
        if (g.c_dtype == DType::f32) static_cast<float*>(g.c)[at] = float(sum);
        else static_cast<f16*>(g.c)[at] = f16(float(sum));
      }
}

void gemm_case(const Shape& s, DType t, bool cublaslt = false) {
  setenv("DEEM_CUBLASLT", cublaslt ? "1" : "0", 1);
  Parity p(str(name_of_case(s, t), cublaslt ? " cuBLASLt" : ""));
  const int64_t a_line = (s.a_transposed ? s.m : s.k) + s.pad, b_line = (s.b_transposed ? s.k : s.n) + s.pad;
  const int64_t a_count = s.batch * (s.a_transposed ? s.k : s.m) * a_line;
  const int64_t b_count = s.batch * (s.b_transposed ? s.n : s.k) * b_line;
  auto a = p.random(a_count + s.first, t), b = p.random(b_count + s.first, t);
  auto bias = s.bias ? p.random(s.n, t) : Buffer();
  const DType c_type = s.wide ? DType::f32 : t;
  auto c = p.zeros(s.batch * s.m * (s.n + s.c_pad), c_type);
  p.run([&](Device d) {
    const GemmArgs args{.batch = s.batch,
                        .a = operand(a(d, s.first), s.m, s.k, s.a_transposed, s.pad),
                        .b = operand(b(d, s.first), s.k, s.n, s.b_transposed, s.pad),
                        .bias = s.bias ? static_cast<const void*>(bias(d)) : nullptr,
                        .c = c(d),
                        .c_row_stride = s.n + s.c_pad,
                        .dtype = t,
                        .c_dtype = c_type};
    if (d == Device::cpu && t == DType::f16) reference(args);
    else gemm_kernel(d, args);
  });
  p.close(c);  // what lies between the rows of c stays zero
}

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

TEST("gemm: layouts") {
  for (DType t : kTypes)
    for (bool a : {false, true})
      for (bool b : {false, true}) {
        gemm_case({.m = 72, .n = 40, .k = 104, .a_transposed = a, .b_transposed = b, .bias = a}, t);
        gemm_case({.m = 31, .n = 33, .k = 35, .batch = 3, .a_transposed = a, .b_transposed = b, .bias = b}, t);
      }
}

TEST("gemm: edges") {
  for (DType t : kTypes) {
    for (int64_t m : {1, 7, 65})
      for (int64_t n : {1, 9, 66})
        for (int64_t k : {1, 8, 67}) gemm_case({.m = m, .n = n, .k = k, .b_transposed = k % 2 == 0, .bias = true}, t);
    gemm_case({.m = 64, .n = 64, .k = 64}, t);
    gemm_case({.m = 2, .n = 3, .k = 0, .bias = false, .c_pad = 1}, t);
  }
}

TEST("gemm: rows apart, c in f32, operands that are not aligned") {
  for (DType t : kTypes)
    for (bool transposed : {false, true}) {
      gemm_case({.m = 20, .n = 24, .k = 40, .a_transposed = transposed, .pad = 8, .c_pad = 8}, t);
      gemm_case({.m = 20, .n = 24, .k = 40, .b_transposed = transposed, .bias = true, .wide = true}, t);
      gemm_case({.m = 20, .n = 25, .k = 40, .wide = true, .pad = 2, .c_pad = 3}, t);
      gemm_case({.m = 18, .n = 22, .k = 34, .a_transposed = transposed, .b_transposed = !transposed, .pad = 4}, t);
      gemm_case({.m = 16, .n = 16, .k = 32, .batch = 2, .a_transposed = transposed, .first = 1}, t);
      gemm_case({.m = 16, .n = 16, .k = 32, .b_transposed = transposed, .first = 2}, t);
    }
}

// As many tiles as the emulator has multiprocessors, 4, make them large.
TEST("gemm: large tiles") {
  for (DType t : kTypes) {
    gemm_case({.m = 130, .n = 136, .k = 40, .b_transposed = true}, t);
    gemm_case({.m = 136, .n = 130, .k = 34, .a_transposed = true}, t);
    gemm_case({.m = 136, .n = 40, .k = 40, .batch = 2, .b_transposed = true, .bias = true}, t);
  }
}

TEST("gemm: few outputs, long sums") {
  for (DType t : kTypes) {
    gemm_case({.m = 8, .n = 24, .k = 1500, .a_transposed = true, .bias = true, .c_pad = 8}, t);
    gemm_case({.m = 9, .n = 5, .k = 1111, .batch = 2, .b_transposed = true, .bias = true, .wide = true}, t);
  }
}

// Where the build has it; our own kernels once more elsewhere.
TEST("gemm: cuBLASLt") {
  for (DType t : kTypes)
    for (bool a : {false, true})
      for (bool b : {false, true}) {
        gemm_case({.m = 72, .n = 40, .k = 104, .a_transposed = a, .b_transposed = b, .bias = a}, t, true);
        gemm_case({.m = 9, .n = 33, .k = 35, .batch = 3, .a_transposed = a, .b_transposed = b, .bias = b}, t, true);
        gemm_case({.m = 1, .n = 7, .k = 12, .a_transposed = a, .b_transposed = b, .bias = true, .wide = true}, t, true);
        gemm_case({.m = 8, .n = 1, .k = 1, .a_transposed = a, .b_transposed = b, .pad = 2, .c_pad = 3}, t, true);
        gemm_case({.m = 1, .n = 1, .k = 9, .batch = 2, .a_transposed = a, .b_transposed = b, .first = 1}, t, true);
        // The plan is kept, its pointers are not.
        gemm_case({.m = 72, .n = 40, .k = 104, .a_transposed = a, .b_transposed = b, .bias = a}, t, true);
      }
}

}  // namespace
}  // namespace deem::test
