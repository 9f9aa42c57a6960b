#include "ops/random.h"

#include <cmath>
#include <cstring>

#include "parity.h"

namespace deem::test {
namespace {

constexpr int64_t kCounts[] = {1, 2, 3, 4, 5, 7, 1027};
constexpr uint64_t kSeeds[][2] = {{0, 0}, {0x123456789abcdef0, 7}, {42, 0xffffffff00000003}};

int64_t steps_between(double a, double b) {  // last places between two floats
  auto place = [](float v) {
    int32_t i;
    std::memcpy(&i, &v, 4);
    return i < 0 ? int64_t(INT32_MIN) - i : int64_t(i);
  };
  return std::llabs(place(float(a)) - place(float(b)));
}

TEST("cuda random: the CPU's bits, and its normal numbers to 2 ulp") {
  for (auto [seed, stream] : kSeeds)
    for (int64_t n : kCounts)
      for (int64_t first : {0, 1}) {
        Parity p(str("random seed ", seed, " n ", n, " from ", first));
        auto u = p.output(n + first), z = p.output(n + first), i = p.output(n + first, DType::i64),
             j = p.output(n + first, DType::i64);
        p.run([&](Device d) {
          random_kernel(d, {Draw::uniform, u(d, first), n, seed, stream, 0, 0});
          random_kernel(d, {Draw::normal, z(d, first), n, seed, stream, 0, 0});
          random_kernel(d, {Draw::integer, i(d, first), n, seed, stream, -5, 1000});
          random_kernel(d, {Draw::integer, j(d, first), n, seed, stream, INT64_MIN, ~uint64_t(0)});
        });
        p.same(u);
        p.same(i);
        p.same(j);
        const auto want = z.host_values(), got = z.device_values();
        for (size_t k = size_t(first); k < want.size(); k++)
          if (steps_between(want[k], got[k]) > 2)
            throw Failure{str("normal ", k, " is ", got[k], ", on the CPU ", want[k])};
      }
}

TEST("cuda random: many normal numbers to 2 ulp") {
  constexpr int64_t n = 200000;
  Parity p("normal numbers");
  auto z = p.output(n);
  p.run([&](Device d) { random_kernel(d, {Draw::normal, z(d), n, 11, 3, 0, 0}); });
  const auto want = z.host_values(), got = z.device_values();
  int64_t most = 0;
  for (size_t k = 0; k < want.size(); k++) most = std::max(most, steps_between(want[k], got[k]));
  EXPECT(most <= 2);
}

TEST("cuda random: dropout of elements and of rows") {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (int64_t n : kCounts)
      for (int64_t cols : {0, 1, 16, 37})
        for (int64_t first : {0, 1}) {
          const int64_t size = (cols ? std::min<int64_t>(n, 40) * cols : n) + first,
                        rows = cols ? (size - first) / cols : n;
          Parity p(str("dropout ", dtype, " n ", n, " cols ", cols, " from ", first));
          auto x = p.random(size, dtype), y = p.output(size, dtype);
          p.run([&](Device d) {
            dropout_kernel(d, {.x = x(d, first),
                               .y = y(d, first),
                               .rows = rows,
                               .cols = cols,
                               .seed = 99,
                               .stream = 12,
                               .threshold = 0x60000000,
                               .scale = 1.6f,
                               .dtype = dtype});
          });
          p.same(y);
        }
}

}  // namespace
}  // namespace deem::test
