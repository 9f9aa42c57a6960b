#include "ops/elementwise.h"

#include <cmath>
#include <limits>

#include "cuda/walk.cuh"
#include "ops/gated.h"
#include "ops/greater.h"
#include "parity.h"

namespace deem::test {
namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};
constexpr int64_t kCounts[] = {1, 31, 33, 1029};

TEST("cuda walk: places on axes are divided exactly") {
  const std::vector<int64_t> divisors = {
      1, 2, 3, 5, 7, 32, 33, 641, 65535, 65536, 65537, 1000003, (1 << 30) - 1, 1 << 30, INT32_MAX};
  for (int64_t d : divisors)
    for (int64_t bound : {int64_t(INT32_MAX), int64_t(1) << 40}) {  // by multiplying, by dividing
      const cuda::Divider divider(d, bound);
      for (int64_t q : {int64_t(0), int64_t(1), int64_t(2), bound / d / 2, bound / d - 1})
        for (int64_t n : {q * d - 1, q * d, q * d + 1, q * d + d - 1, bound - 1})
          if (n >= 0 && n < bound) EXPECT_EQ(divider.divide(n), n / d);
    }
}

#define NAME(name, ...) #name,
constexpr const char* kUnaryNames[] = {DEEM_UNARY_TABLE(NAME)};
#undef NAME
#define KEEPS(name, keeps, ...) Keeps::keeps,
constexpr Keeps kKeeps[] = {DEEM_UNARY_TABLE(KEEPS)};
#undef KEEPS

// `first` shifts every operand by elements, so that vectors do not fit.
void unary_case(Unary op, DType dtype, int64_t n, int64_t first) {
  Parity p(str(kUnaryNames[int(op)], ' ', dtype, " n ", n, " from ", first));
  const bool positive = op == Unary::log || op == Unary::sqrt;
  auto x = p.random(n + first, dtype, positive ? 2.9 : 6, positive ? 3 : 0), dy = p.random(n + first, dtype),
       y = p.output(n + first, dtype), dx = p.output(n + first, dtype);
  const float s = op == Unary::clamp ? -0.5f : 1.75f, t = 2.25f;
  p.run([&](Device d) {
    unary_kernel(d, {op, x(d, first), y(d, first), n, s, t, dtype});
    const Keeps keeps = kKeeps[int(op)];
    const void* kept = keeps == Keeps::input ? x(d, first) : keeps == Keeps::output ? y(d, first) : Address{nullptr};
    unary_backward_kernel(d, {op, dy(d, first), kept, dx(d, first), n, s, t, dtype});
  });
  p.close(y);
  p.close(dx, dtype == DType::f32 ? 1e-5 : -1, "dx");
}

TEST("cuda elementwise: unary operations and their derivatives") {
  for (int op = 0; op < int(std::size(kUnaryNames)); op++)
    for (DType dtype : kFloats)
      for (int64_t n : kCounts)
        for (int64_t first : {0, 1}) unary_case(Unary(op), dtype, n, first);
}

TEST("cuda elementwise: unary operations of extreme numbers") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> extremes = {0.0f,  -0.0f,  1e-30f, -1e-30f, 17.0f, -17.0f, 50.0f, -50.0f, 200.0f, -200.0f,
                                       1e20f, -1e20f, inf,    -inf,    NAN,   1.0f,   -1.0f, 0.75f,  -0.85f};
  for (int op = 0; op < int(std::size(kUnaryNames)); op++) {
    Parity p(str(kUnaryNames[op], " of extremes"));
    const int64_t n = int64_t(extremes.size());
    auto x = p.of(extremes), dy = p.of(std::vector<float>(extremes.size(), 1.0f)), y = p.output(n), dx = p.output(n);
    p.run([&](Device d) {
      unary_kernel(d, {Unary(op), x(d), y(d), n, -0.5f, 2, DType::f32});
      const Address kept = kKeeps[op] == Keeps::input ? x(d) : kKeeps[op] == Keeps::output ? y(d) : Address{nullptr};
      unary_backward_kernel(d, {Unary(op), dy(d), kept, dx(d), n, -0.5f, 2, DType::f32});
    });
    // Each by itself: the largest would hide the others. Below 1e-30 either may have left the normal numbers.
    for (auto& b : {y, dx}) {
      const auto want = b.host_values(), got = b.device_values();
      for (size_t i = 0; i < want.size(); i++) {
        const bool same = want[i] == got[i] || (std::isnan(want[i]) && std::isnan(got[i]));
        if (!same && !(std::fabs(want[i] - got[i]) <= 1e-5 * std::fabs(want[i]) + 1e-30))
          throw Failure{str(kUnaryNames[op], " of ", extremes[i], &b == &y ? "" : ", derivative", ": ", got[i],
                            ", on the CPU ", want[i])};
      }
    }
  }
}

// The left tail of gelu is a product of a small number: its relative error must not grow by cancelling.
TEST("cuda elementwise: gelu's left tail") {
  Parity p("gelu tail");
  auto x = p.random(500, DType::f32, 5, -5), y = p.output(500);
  p.run([&](Device d) { unary_kernel(d, {Unary::gelu, x(d), y(d), 500, 0, 0, DType::f32}); });
  const auto want = y.host_values(), got = y.device_values();
  for (size_t i = 0; i < want.size(); i++) EXPECT(std::fabs(want[i] - got[i]) <= 1e-5 * std::fabs(want[i]));
}

struct BinaryCase {
  const char* name;
  Shape shape, y, a, b;  // strides in elements
  int64_t y_size, a_size, b_size;
};
const BinaryCase kBinary[] = {
    {"one", {1}, {1}, {1}, {1}, 1, 1, 1},
    {"flat", {1029}, {1}, {1}, {1}, 1029, 1029, 1029},
    {"number at the right", {1000}, {1}, {1}, {0}, 1000, 1000, 1},
    {"number at the left", {333}, {1}, {0}, {1}, 333, 1, 333},
    {"rows and a row", {5, 33}, {33, 1}, {33, 1}, {0, 1}, 165, 165, 33},
    {"rows and a column", {9, 64}, {64, 1}, {64, 1}, {1, 0}, 576, 576, 9},
    {"outer product", {7, 40}, {40, 1}, {1, 0}, {0, 1}, 280, 7, 40},
    {"part of wider rows", {6, 32}, {32, 1}, {48, 1}, {32, 1}, 192, 288, 192},
    {"three axes", {3, 4, 24}, {96, 24, 1}, {0, 24, 1}, {24, 0, 1}, 288, 96, 72},
    {"narrow rows", {50, 3}, {3, 1}, {3, 1}, {0, 1}, 150, 150, 3},
    {"five axes", {2, 3, 2, 3, 8}, {144, 48, 24, 8, 1}, {0, 8, 0, 24, 1}, {24, 0, 8, 0, 1}, 288, 72, 48},
};

TEST("cuda elementwise: binary operations over broadcast and strided operands") {
  for (const BinaryCase& c : kBinary)
    for (Binary op : {Binary::add, Binary::sub, Binary::mul, Binary::div})
      for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i64})
        for (int64_t first : {0, 1}) {
          if (dtype == DType::i64 && op == Binary::div) continue;
          Parity p(str("binary ", int(op), ' ', dtype, ' ', c.name, " from ", first));
          auto input = [&](int64_t n, double offset) {
            return dtype == DType::i64 ? p.integers(n + first, dtype, INT64_MIN, INT64_MAX)
                                       : p.random(n + first, dtype, 1, offset);
          };
          auto a = input(c.a_size, 0), b = input(c.b_size, 2.5), y = p.output(c.y_size + first, dtype);
          const auto axes = coalesce<3>(c.shape, {c.y, c.a, c.b});
          p.run([&](Device d) { binary_kernel(d, {op, y(d, first), a(d, first), b(d, first), axes, dtype}); });
          p.close(y);
        }
}

TEST("cuda elementwise: a sum in place") {
  Parity p("in place");
  auto y = p.random(777, DType::bf16), b = p.random(777, DType::bf16);
  const auto axes = coalesce<3>({777}, {{1}, {1}, {1}});
  p.run([&](Device d) { binary_kernel(d, {Binary::add, y(d), y(d), b(d), axes, DType::bf16}); });
  p.same(y);
}

TEST("cuda elementwise: where") {
  struct Case {
    const char* name;
    Shape shape, y, mask, a, b;
    int64_t mask_size, a_size, b_size;
  };
  const Case cases[] = {
      {"flat", {517}, {1}, {1}, {1}, {1}, 517, 517, 517},
      {"a number", {264}, {1}, {1}, {1}, {0}, 264, 264, 1},
      {"a mask by rows", {12, 24}, {24, 1}, {1, 0}, {24, 1}, {0, 1}, 12, 288, 24},
      {"a mask by columns", {7, 31}, {31, 1}, {0, 1}, {31, 1}, {1, 0}, 31, 217, 7},
  };
  for (const Case& c : cases)
    for (DType dtype : {DType::u8, DType::bf16, DType::f32, DType::i64})
      for (int64_t first : {0, 1}) {
        const int64_t n = c.shape.numel();
        Parity p(str("where ", dtype, ' ', c.name, " from ", first));
        auto mask = p.integers(c.mask_size + first, DType::u8, 0, 3), a = p.integers(c.a_size + first, dtype, 0, 100),
             b = p.integers(c.b_size + first, dtype, 100, 200), y = p.output(n + first, dtype);
        const auto axes = coalesce<4>(c.shape, {c.y, c.mask, c.a, c.b});
        p.run([&](Device d) {
          where_kernel(d, {y(d, first), mask(d, first), a(d, first), b(d, first), axes, int64_t(size_of(dtype))});
        });
        p.same(y);
      }
}

TEST("cuda elementwise: casts between all types") {
  constexpr DType all[] = {DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8};
  constexpr float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> numbers = {0,     -0.0f, 0.5f,   -0.5f, 1.5f, 2.5f, 254.9f,   255.0f, 256.0f,   -1.0f, 3e9f,
                                      -3e9f, 1e19f, -1e19f, inf,   -inf, NAN,  65504.0f, 1e-7f,  70000.0f, 123.4f};
  for (DType from : all)
    for (DType to : all)
      for (int64_t first : {0, 1}) {
        Parity p(str("cast ", from, " to ", to, " from ", first));
        const int64_t n = int64_t(numbers.size());
        auto start = p.of(numbers), x = p.output(n + first, from), y = p.output(n + first, to);
        Buffer wide = p.integers(n, DType::i64, INT64_MIN, INT64_MAX);
        if (from == DType::i64) p.run([&](Device d) { cast_kernel(d, {wide(d), x(d, first), n, DType::i64, from}); });
        else p.run([&](Device d) { cast_kernel(d, {start(d), x(d, first), n, DType::f32, from}); });
        p.run([&](Device d) { cast_kernel(d, {x(d, first), y(d, first), n, from, to}); });
        p.same(x);
        p.same(y);
      }
}

TEST("cuda elementwise: greater") {
  for (DType dtype : kFloats)
    for (int64_t n : kCounts)
      for (int64_t first : {0, 1}) {
        Parity p(str("greater ", dtype, " n ", n, " from ", first));
        auto x = p.random(n + first, dtype), y = p.output(n + first, DType::u8);
        p.run([&](Device d) { greater_kernel(d, {x(d, first), y(d, first), n, 0.25f, dtype}); });
        p.same(y);
      }
}

TEST("cuda gated: geglu and swiglu") {
  for (Gate gate : {Gate::geglu, Gate::swiglu})
    for (DType dtype : kFloats)
      for (auto [rows, n] : {std::pair<int64_t, int64_t>{1, 1}, {3, 31}, {5, 32}, {2, 33}, {7, 168}, {1, 1032}}) {
        Parity p(str(gate == Gate::geglu ? "geglu " : "swiglu ", dtype, ' ', rows, " x ", n));
        auto x = p.random(rows * 2 * n, dtype, 6), dy = p.random(rows * n, dtype), y = p.output(rows * n, dtype),
             dx = p.output(rows * 2 * n, dtype);
        p.run([&](Device d) {
          gated_kernel(d, {gate, x(d), y(d), rows, n, dtype});
          gated_backward_kernel(d, {gate, dy(d), x(d), dx(d), rows, n, dtype});
        });
        p.close(y);
        p.close(dx, dtype == DType::f32 ? 1e-5 : -1, "dx");
      }
}

}  // namespace
}  // namespace deem::test
