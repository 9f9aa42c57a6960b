#include "ops/reduce.h"

#include <cmath>

#include "ops/matmul.h"
#include "parity.h"

namespace deem::test {
namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};
// Doubles lie in buffers of i64, whose difference is counted in last places: 1e-13 of 2^62 is an error of 1e-10.
constexpr double kDoubles = 1e-13;

TEST("cuda reduce: sums over the middle axis") {
  struct Case {
    int64_t outer, rows, inner;
  };
  for (const Case& c : {Case{1, 1, 1},
                        {3, 33, 1},
                        {17, 64, 1},
                        {2, 1025, 1},
                        {1, 20000, 1},
                        {4, 7, 3},
                        {1, 9000, 5},
                        {2, 3, 31},
                        {2, 100, 32},
                        {1, 777, 64},
                        {3, 50, 130},
                        {1, 1200, 256},
                        {2, 9, 33}})
    for (DType dtype : kFloats)
      for (bool wide : {false, true})
        for (int64_t first : {0, 1}) {
          const DType y_dtype = wide ? DType::f32 : dtype;
          const int64_t n = c.outer * c.rows * c.inner + first;
          const bool times = c.inner != 1 && wide;  // of products
          Parity p(str("sum ", dtype, " to ", y_dtype, ' ', c.outer, 'x', c.rows, 'x', c.inner, " from ", first));
          auto x = p.random(n, dtype), by = times ? p.random(n, dtype) : Buffer(),
               y = p.output(c.outer * c.inner, y_dtype);
          p.run([&](Device d) {
            sum_kernel(d, {.x = x(d, first),
                           .times = times ? by(d, first) : Address{nullptr},
                           .y = y(d),
                           .partial = nullptr,
                           .outer = c.outer,
                           .rows = c.rows,
                           .inner = c.inner,
                           .blocks = 1,
                           .block_rows = c.rows,
                           .scale = 1.0 / 7,
                           .x_dtype = dtype,
                           .y_dtype = y_dtype});
          });
          p.close(y);
        }
}

// Values that f32 would lose beside the large one.
TEST("cuda reduce: sums run in double") {
  std::vector<float> values(3000, 1e-3f);
  values[5] = 1e8f;
  values[2000] = -1e8f;
  Parity p("large and small");
  auto x = p.of(values), y = p.output(1);
  p.run([&](Device d) {
    sum_kernel(d, {.x = x(d),
                   .times = nullptr,
                   .y = y(d),
                   .partial = nullptr,
                   .outer = 1,
                   .rows = 3000,
                   .inner = 1,
                   .blocks = 1,
                   .block_rows = 3000,
                   .scale = 1,
                   .x_dtype = DType::f32,
                   .y_dtype = DType::f32});
  });
  p.close(y);
  EXPECT(std::fabs(y.device_values()[0] - 2.998) < 1e-5);
}

TEST("cuda reduce: sums of squares and of squared differences") {
  for (int64_t n : {1, 33, 8193, 40000})
    for (DType dtype : kFloats)
      for (bool two : {false, true})
        for (int64_t first : {0, 1}) {
          Parity p(str("sum_squares ", dtype, " n ", n, two ? " of differences" : "", " from ", first));
          const int64_t blocks = (n + 16383) / 16384;
          auto a = p.random(n + first, dtype), b = two ? p.random(n + first, dtype) : Buffer(),
               sum = p.output(1, DType::i64), mean = p.output(1), partial = p.output(blocks, DType::i64);
          p.run([&](Device d) {
            sum_squares_kernel(d, {.a = a(d, first),
                                   .b = two ? b(d, first) : Address{nullptr},
                                   .partial = partial(d),
                                   .sum = sum(d),
                                   .mean = mean(d),
                                   .n = n,
                                   .blocks = blocks,
                                   .block = 16384,
                                   .dtype = dtype});
          });
          p.close(sum, kDoubles);
          p.close(mean);
        }
}

TEST("cuda reduce: mse_loss backward") {
  for (int64_t n : {1, 33, 1029})
    for (DType dtype : kFloats) {
      Parity p(str("mse backward ", dtype, " n ", n));
      auto x = p.random(n, dtype), target = p.random(n, dtype), dx = p.output(n, dtype), dy = p.random(1);
      p.run([&](Device d) { mse_backward_kernel(d, {x(d), target(d), dy(d), dx(d), n, 0.37f, dtype}); });
      p.close(dx);
    }
}

TEST("cuda reduce: argmax, first of equals, NaN above all") {
  for (int64_t cols : {1, 31, 33, 512, 513, 9000, 32006})
    for (DType dtype : kFloats) {
      if (cols > 9000 && dtype != DType::bf16) continue;
      const int64_t rows = cols > 1000 ? 2 : 9;
      Parity p(str("argmax ", dtype, " cols ", cols));
      auto x = p.integers(rows * cols, dtype, -3, 3), y = p.output(rows, DType::i64);  // many equals
      p.run([&](Device d) { argmax_kernel(d, {x(d), y(d), rows, cols, dtype}); });
      p.same(y);
    }
  constexpr float inf = __builtin_inff();
  const std::vector<std::vector<float>> rows = {{-0.0f, 0.0f, -1, 0.0f}, {-inf, -inf, -inf, -inf}, {1, NAN, inf, NAN},
                                                {-inf, -5, -5, -inf},    {0.0f, -0.0f, 0, 0},      {inf, inf, 1, 2}};
  for (const auto& row : rows) {
    Parity p("argmax of special numbers");
    auto x = p.of(row), y = p.output(1, DType::i64);
    p.run([&](Device d) { argmax_kernel(d, {x(d), y(d), 1, 4, DType::f32}); });
    p.same(y);
  }
}

TEST("cuda column_sum") {
  for (int64_t rows : {1, 8, 9, 700})
    for (int64_t cols : {1, 5, 31, 33, 128, 260})
      for (DType dtype : kFloats) {
        Parity p(str("column_sum ", dtype, ' ', rows, " x ", cols));
        auto x = p.random(rows * cols, dtype), y = p.output(cols, dtype);
        p.run([&](Device d) { column_sum_kernel(d, {x(d), y(d), rows, cols, dtype}); });
        p.close(y, dtype == DType::f32 ? 1e-5 : -1);  // f32 sums in two orders
      }
}

}  // namespace
}  // namespace deem::test
