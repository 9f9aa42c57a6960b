// Element types and random numbers.
#include <cmath>

#include "core/rng.h"
#include "test.h"

namespace deem::test {

namespace {

template <class T>
T of_bits(uint32_t bits) {
  T v;
  v.bits = uint16_t(bits);
  return v;
}

// The definition of round-to-nearest-even, checked at every place where the result changes: for neighbours a < b, their
// midpoint goes to the one with the even last bit, and anything below or above it to the nearer one.
template <class T>
void check_rounding(uint16_t infinity) {
  for (uint32_t bits = 0; bits < infinity; bits++) {
    double low = float(of_bits<T>(bits)), high = float(of_bits<T>(bits + 1));
    if (bits + 1 == infinity) high = 2 * low - float(of_bits<T>(bits - 1));  // what would come next
    float middle = float((low + high) / 2);
    uint32_t even = bits + bits % 2;
    for (float sign : {1.f, -1.f}) {
      uint32_t s = sign < 0 ? 0x8000 : 0;
      EXPECT_EQ(T(sign * float(low)).bits, s | bits);
      EXPECT_EQ(T(sign * middle).bits, s | even);
      EXPECT_EQ(T(sign * std::nextafter(middle, 0.f)).bits, s | bits);
      EXPECT_EQ(T(sign * std::nextafter(middle, INFINITY)).bits, s | (bits + 1));
    }
  }
}

template <class T>
void check_round_trip(uint16_t infinity) {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    float f = float(of_bits<T>(bits));
    if ((bits & 0x7fff) > infinity) {
      EXPECT(std::isnan(f));
      EXPECT(std::isnan(float(T(f))));
      EXPECT_EQ(std::signbit(float(T(f))), bool(bits & 0x8000));
    } else {
      EXPECT_EQ(T(f).bits, bits);
    }
  }
}

}  // namespace

TEST("bf16: every value survives float, every rounding is to nearest even") {
  check_round_trip<bf16>(0x7f80);
  check_rounding<bf16>(0x7f80);
  EXPECT_EQ(bf16(INFINITY).bits, 0x7f80);
  EXPECT_EQ(bf16(-INFINITY).bits, 0xff80);
  EXPECT_EQ(float(bf16(std::bit_cast<float>(0x7f7fffffu))), INFINITY);
  EXPECT(std::isnan(float(bf16(std::bit_cast<float>(0x7f800001u)))));  // must not round to infinity
  EXPECT_EQ(bf16(-0.f).bits, 0x8000);
}

TEST("f16: every value survives float, every rounding is to nearest even") {
  check_round_trip<f16>(0x7c00);
  check_rounding<f16>(0x7c00);
  EXPECT_EQ(float(of_bits<f16>(1)), 0x1p-24f);
  EXPECT_EQ(float(of_bits<f16>(0x7bff)), 65504.f);
  EXPECT_EQ(f16(1e30f).bits, 0x7c00);
  EXPECT_EQ(f16(-INFINITY).bits, 0xfc00);
  EXPECT_EQ(f16(1e-30f).bits, 0);
  EXPECT_EQ(f16(-1e-30f).bits, 0x8000);
  EXPECT(std::isnan(float(f16(std::bit_cast<float>(0x7f800001u)))));
}

TEST("dtypes: names go both ways") {
  for (DType t : {DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8})
    EXPECT(dtype_from_name(name_of(t)) == t);
  expect_error<DTypeError>([] { dtype_from_name("f64"); }, "unknown dtype 'f64'");
  expect_error<DTypeError>([] { dispatch_float(DType::i64, "op", [](auto) {}); },
                           "[op] needs a floating dtype but got i64");
}

// The vectors of the paper's own implementation (Random123 kat_vectors, philox4x32 10).
TEST("philox: known answers") {
  auto expect = [](std::array<uint32_t, 4> got, std::array<uint32_t, 4> want) {
    for (int i = 0; i < 4; i++) EXPECT_EQ(got[size_t(i)], want[size_t(i)]);
  };
  expect(philox(0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  expect(philox(~uint64_t(0), ~uint64_t(0), ~uint64_t(0)), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  // counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0
  expect(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST("random: 24 bits, below one") {
  EXPECT_EQ(uniform01(0), 0.f);
  EXPECT_EQ(uniform01(0xff), 0.f);
  EXPECT_EQ(uniform01(0x100), 0x1p-24f);
  EXPECT(uniform01(~0u) < 1.f);
}

TEST("random: scopes nest, steps are apart, no draw without a seed") {
  expect_error<ValueError>([] { take_stream(); }, "no seed");
  {
    RngScope outer(7, 3);
    EXPECT_EQ(take_stream(), uint64_t(3) << 32);
    EXPECT_EQ(take_stream(), (uint64_t(3) << 32) + 1);
    {
      RngScope inner(8, 0);
      EXPECT_EQ(rng_state().seed, 8u);
      EXPECT_EQ(take_stream(), 0u);
    }
    EXPECT_EQ(rng_state().seed, 7u);
    EXPECT_EQ(take_stream(), (uint64_t(3) << 32) + 2);
  }
  expect_error<ValueError>([] { take_stream(); }, "no seed");
}

}  // namespace deem::test
