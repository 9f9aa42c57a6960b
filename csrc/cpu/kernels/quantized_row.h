// Rows of weights in few bits, as csrc/ops/quantized_linear.h lays them out: read back as floats, and how products ask memory for them.
#pragma once
#include "cpu/simd.h"
#include "ops/quantized_linear.h"

namespace deem::DEEM_ISA {

// Columns that are turned into floats at once: 8 KB, and whole groups of any size.
constexpr int64_t kSpan = 2048;

// A finite f16 without branches: a product, which is exact, puts the exponent right.
DEEM_INLINE float half(f16 h) {
  float v = std::bit_cast<float>(uint32_t(h.bits & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112
  return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | uint32_t(h.bits & 0x8000) << 16);
}

// A format's sizes, worked out once: divisions for every row would cost as much as everything else.
struct Layout {
  int64_t cols, code_bytes, row_bytes, groups;
  int shift;  // log2 of a group
  bool symmetric;
  float zero;

  DEEM_INLINE explicit Layout(const QuantFormat& f)
      : cols(f.cols),
        code_bytes(f.code_bytes()),
        row_bytes(f.row_bytes()),
        groups(f.groups()),
        shift(f.group == 32   ? 5
              : f.group == 64 ? 6
                              : 7),
        symmetric(f.symmetric),
        zero(float(f.zero())) {}
};

// Scales and offsets of the groups of columns from..from + n of a row, `from` a multiple of 128 and n at most kSpan.
struct Groups {
  float scale[kSpan / 32], offset[kSpan / 32];
};
DEEM_INLINE void load_groups(const uint8_t* row, const Layout& f, int64_t from, int64_t n, Groups& out) {
  const f16* stored = (const f16*)(row + f.code_bytes) + (from >> f.shift);
  const int64_t count = (n + (1 << f.shift) - 1) >> f.shift, all = f.groups;
  const float zero = f.zero;
  const bool symmetric = f.symmetric;
#pragma omp simd
  for (int64_t g = 0; g < count; g++) {
    out.scale[g] = half(stored[g]);
    out.offset[g] = symmetric ? -zero * out.scale[g] : half(stored[all + g]);
  }
}

// Columns from..from + n of a row as floats; whole pieces of 32 are written. (code - zero) * scale is exact, also as
// code * scale - zero * scale: 8 bits times the 11 of an f16.
template <int Bits>
DEEM_INLINE void dequantize_span(const uint8_t* row, const Layout& f, int64_t from, int64_t n, float* out) {
  Groups groups;
  load_groups(row, f, from, n, groups);
  const int shift = f.shift;
  const uint8_t* codes = row + from * Bits / 8;
  for (int64_t i = 0; i < n; i += 32) {
    const float scale = groups.scale[i >> shift], offset = groups.offset[i >> shift];
    float* to = out + i;
    if (Bits == 8) {
#pragma omp simd
      for (int64_t k = 0; k < 32; k++) to[k] = float(codes[i + k]) * scale + offset;
    } else {
      const uint8_t* bytes = codes + i / 2;
#pragma omp simd
      for (int64_t k = 0; k < 16; k++) {
        to[k] = float(bytes[k] & 15) * scale + offset;
        to[k + 16] = float(bytes[k] >> 4) * scale + offset;
      }
    }
  }
}

template <class F>
DEEM_INLINE void with_bits(const QuantFormat& f, F&& run) {
  if (f.bits == 8) run.template operator()<8>();
  else run.template operator()<4>();
}

// A core reads memory at full speed only where lines are asked for long before, in the order in which they lie, and into the second
// cache: requests from the first one are too few at a time. Rows that are read side by side lie apart by row_bytes.
constexpr int64_t kAhead = 8192;
constexpr int kRows = 2;  // of weights, side by side
DEEM_INLINE int64_t bytes_ahead(const Layout& f, int rows) { return kAhead + (rows - 1) * f.row_bytes; }

}  // namespace deem::DEEM_ISA
