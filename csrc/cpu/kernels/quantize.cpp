#include "cpu/kernels/quantized_row.h"

namespace deem::DEEM_ISA {

// The f16 nearest to v among those as far from zero or farther.
static f16 away_from_zero(float v) {
  f16 h(v);
  if (std::fabs(float(h)) < std::fabs(v)) h.bits++;
  return h;
}
// The largest f16 that is not above v.
static f16 not_above(float v) {
  f16 h(v);
  if (!(float(h) > v)) return h;
  if (float(h) > 0) h.bits--;
  else h.bits = uint16_t(v < 0 && h.bits == 0 ? 0x8001 : h.bits + 1);
  return h;
}

static bool is_finite(float v) { return v - v == 0; }

static int to_code(float v, float inverse, int zero, int lowest, int highest) {
  float q = std::floor(v * inverse + 0.5f) + float(zero);
  return int(min(max(q, float(lowest)), float(highest)));
}

// The scale takes the number farthest from zero to the end of the codes: to -2^(bits-1) in 4 bits, whose codes reach one farther below
// zero than above, to +-127 in 8. With offsets the smallest number becomes code 0 and the largest the last one. Scales are rounded away from
// zero and offsets down, so that no number lies outside of the codes.
static bool quantize_row(const float* w, uint8_t* row, const QuantFormat& f) {
  int zero = int(f.zero()), highest = (1 << f.bits) - 1, lowest = f.symmetric && f.bits == 8 ? 1 : 0;
  f16* scales = (f16*)(row + f.code_bytes());
  f16* offsets = scales + f.groups();
  for (int64_t i = 0; i < f.code_bytes(); i++) row[i] = uint8_t(f.bits == 8 ? zero : zero | zero << 4);
  for (int64_t g = 0; g < f.groups(); g++) {
    int64_t from = g * f.group, to = min(f.cols, from + f.group);
    float low = w[from], high = w[from];
    for (int64_t i = from; i < to; i++) {
      if (!is_finite(w[i])) return false;
      low = min(low, w[i]);
      high = max(high, w[i]);
    }
    f16 scale_bits;
    float offset = 0;
    if (f.symmetric) {
      float farthest = -low > high ? low : high;
      scale_bits = away_from_zero(f.bits == 8 ? std::fabs(farthest) / 127 : farthest / -8);
    } else {
      offsets[g] = not_above(low);
      offset = float(offsets[g]);
      scale_bits = away_from_zero((high - offset) / float(highest));
    }
    scales[g] = scale_bits;
    float scale = float(scale_bits);
    if (!is_finite(scale) || !is_finite(offset)) return false;
    float inverse = scale == 0 ? 0 : 1 / scale;
    for (int64_t i = from; i < to; i++) {
      int code = to_code(w[i] - offset, inverse, zero, lowest, highest);
      if (f.bits == 8) {
        row[i] = uint8_t(code);
      } else {
        uint8_t& byte = row[i / 32 * 16 + i % 16];
        byte = uint8_t(i % 32 < 16 ? (byte & 0xf0) | code : (byte & 0x0f) | code << 4);
      }
    }
  }
  return true;
}

static void quantize(const QuantizeArgs& a) {
  parallel_for(a.rows, a.format.cols * 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      a.finite[r] = uint8_t(quantize_row(a.weight + r * a.format.cols, a.packed + r * a.format.row_bytes(), a.format));
  });
}

static void dequantize(const DequantizeArgs& a) {
  const Layout f(a.format);
  with_bits(a.format, [&]<int Bits>() {
    parallel_for(a.rows, a.cols * 2, [&](int64_t begin, int64_t end) {
      float span[kSpan];
      for (int64_t r = begin; r < end; r++)
        for (int64_t c = 0; c < a.cols; c += kSpan) {
          int64_t n = min(kSpan, a.cols - c);
          dequantize_span<Bits>(a.packed + (a.row + r) * f.row_bytes, f, a.col + c, n, span);
          if (a.dtype == DType::f32) {
            float* out = (float*)a.out + r * a.cols + c;
            for (int64_t i = 0; i < n; i++) out[i] = span[i];
          } else {
            bf16* out = (bf16*)a.out + r * a.cols + c;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) out[i] = bf16(span[i]);
          }
        }
    });
  });
}

static const Register r1{quantize_kernel, Device::cpu, quantize};
static const Register r2{dequantize_kernel, Device::cpu, dequantize};

}  // namespace deem::DEEM_ISA
