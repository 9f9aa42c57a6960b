// Weights in few bits: the same codes as the CPU's, the same numbers from them, and products with few rows.
#include "ops/quantized_linear.h"

#include <cmath>

#include "parity.h"

namespace deem::test {
namespace {

std::vector<QuantFormat> formats(int64_t cols) {
  std::vector<QuantFormat> all;
  for (int64_t bits : {8, 4})
    for (int64_t group : {32, 64, 128})
      for (bool symmetric : {true, false}) all.push_back({bits, group, symmetric, cols});
  return all;
}

TEST("quantize, dequantize: every format") {
  for (int64_t cols : {1, 31, 32, 96, 129, 300})
    for (const QuantFormat& f : formats(cols)) {
      const int64_t rows = 5;
      Parity p(str(f.suffix(), " cols ", cols));
      auto w = p.random(rows * cols, DType::f32, 0.3, 0.05);
      for (int64_t c = 0; c < cols; c++) w.host<float>()[c] = 0;  // a row without a scale
      w.host<float>()[2 * cols] = 1e-7f;                          // below the normal f16
      w.host<float>()[3 * cols + cols / 2] = INFINITY;
      auto packed = p.zeros(rows * f.row_bytes(), DType::u8), finite = p.output(rows, DType::u8);
      p.run([&](Device d) { quantize_kernel(d, {w(d), packed(d), finite(d), rows, f}); });
      p.same(finite, "finite");
      // The row that is refused holds anything.
      const auto got = packed.device_values(), want = packed.host_values();
      for (int64_t r : {0, 1, 2, 4})
        for (int64_t i = r * f.row_bytes(); i < (r + 1) * f.row_bytes(); i++) EXPECT_EQ(got[i], want[i]);
    }
}

// Packed on the CPU from random numbers.
Buffer packed_weight(Parity& p, int64_t rows, const QuantFormat& f) {
  auto w = p.random(rows * f.cols, DType::f32, 0.3, 0.05);
  auto packed = p.zeros(rows * f.row_bytes(), DType::u8), finite = p.zeros(rows, DType::u8);
  quantize_kernel(Device::cpu, {w.host<float>(), packed.host<uint8_t>(), finite.host<uint8_t>(), rows, f});
  return packed;
}

TEST("dequantize: parts of a weight") {
  for (int64_t cols : {33, 300})
    for (const QuantFormat& f : formats(cols))
      for (DType t : {DType::f32, DType::bf16})
        for (int64_t col : {0, 128}) {
          if (col >= cols) continue;
          Parity p(str(f.suffix(), " ", t, " cols ", cols, " from ", col));
          auto packed = packed_weight(p, 7, f);
          auto out = p.output(4 * (cols - col), t);
          p.run([&](Device d) { dequantize_kernel(d, {packed(d), out(d), 2, 4, col, cols - col, f, t}); });
          p.same(out);
        }
}

// Beside the CPU's kernel for any x, which is the more exact one.
void gemv_case(int64_t m, int64_t rows, const QuantFormat& f, bool short_x, bool bias) {
  Parity p(str(f.suffix(), " ", m, " rows, weight ", rows, "x", f.cols, short_x ? " short" : "", bias ? " bias" : ""));
  auto packed = packed_weight(p, rows, f);
  auto x = p.random(m * f.cols), b = bias ? p.random(rows) : Buffer();
  if (short_x)
    for (int64_t i = 0; i < m * f.cols; i++) x.host<float>()[i] = float(bf16(x.host<float>()[i]));
  auto scratch = p.zeros(m * gemv_scratch_bytes(f), DType::u8), y = p.output(m * rows);
  p.run([&](Device d) {
    quantized_gemv_kernel(d, {.x = x(d),
                              .packed = packed(d),
                              .bias = bias ? static_cast<const float*>(b(d)) : nullptr,
                              .y = y(d),
                              .scratch = d == Device::cpu ? static_cast<void*>(scratch(d)) : nullptr,
                              .m = m,
                              .rows = rows,
                              .format = f,
                              .short_x = short_x && d != Device::cpu});
  });
  p.close(y);
}

TEST("quantized_gemv: formats, widths, rows") {
  for (int64_t cols : {1, 36, 160, 1300})
    for (const QuantFormat& f : formats(cols)) {
      gemv_case(1, 17, f, true, true);
      gemv_case(3, 16, f, false, false);
    }
  for (int64_t m : {2, 8, 9, 16, 17, 32})
    for (const QuantFormat& f : formats(128)) gemv_case(m, 33, f, m % 2 == 0, m % 3 == 0);
}

}  // namespace
}  // namespace deem::test
