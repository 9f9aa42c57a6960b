// Products of few rows, with weights of few and of many rows, vectors that fit and do not.
#include "ops/matmul.h"
#include "parity.h"

namespace deem::test {
namespace {

void few_rows_case(int64_t m, int64_t n, int64_t k, DType t, DType y_type, bool bias, int64_t first = 0) {
  Parity p(str(t, " to ", y_type, " ", m, "x", n, "x", k, bias ? " bias" : "", " first ", first));
  auto x = p.random(m * k + first, t), w = p.random(n * k + first, t), b = bias ? p.random(n, t) : Buffer();
  auto scratch = p.zeros(m * k), y = p.output(m * n, y_type);
  p.run([&](Device d) {
    few_rows_kernel(d, {.x = x(d, first),
                        .weight = w(d, first),
                        .bias = bias ? static_cast<const void*>(b(d)) : nullptr,
                        .y = y(d),
                        .scratch = d == Device::cpu ? static_cast<float*>(scratch(d)) : nullptr,
                        .m = m,
                        .n = n,
                        .k = k,
                        .dtype = t,
                        .y_dtype = y_type});
  });
  p.close(y);
}

TEST("few_rows: rows, widths, biases") {
  for (DType t : {DType::f32, DType::bf16, DType::f16}) {
    for (int64_t m = 1; m <= kFewRows; m++) few_rows_case(m, 33, 264, t, t, m % 2 == 0);
    for (int64_t k : {1, 31, 32, 255, 1024, 1032}) few_rows_case(3, 5, k, t, DType::f32, true);
    few_rows_case(2, 4099, 40, t, t, true);
    few_rows_case(8, 4096, 17, t, t, false);
    few_rows_case(1, 1, 512, t, t, true, 1);
  }
}

}  // namespace
}  // namespace deem::test
