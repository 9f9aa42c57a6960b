#include "ops/quantized_linear.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

// Columns that are turned into floats at once: 8 KB, and whole groups of any size.
constexpr int64_t kSpan = 2048;

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
      int64_t at = i % f.block(), bit = at / 16 * f.bits;
      uint8_t& byte = row[i / f.block() * 64 + at % 16 * 4 + bit / 8];
      int mask = highest << bit % 8;
      byte = uint8_t((byte & ~mask) | code << bit % 8);
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

// 16 numbers; narrower instruction sets split them.
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

// As they lie in memory. No function takes or returns vectors: how those are passed depends on the instruction set.
typedef Floats StoredFloats __attribute__((aligned(4), may_alias));
typedef Ints StoredInts __attribute__((aligned(1), may_alias));

// A finite f16 without branches: a product, which is exact, puts the exponent right.
DEEM_INLINE float half(f16 h) {
  float v = std::bit_cast<float>(uint32_t(h.bits & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112
  return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | uint32_t(h.bits & 0x8000) << 16);
}

// Columns from..from + n of a row, `from` a multiple of 128 and n at most kSpan; whole blocks are written. (code - zero) * scale is exact,
// also as code * scale - zero * scale: 8 bits times the 11 of an f16.
template <int Bits>
DEEM_INLINE void dequantize_span(const uint8_t* row, const QuantFormat& f, int64_t from, int64_t n, float* out) {
  const f16* stored = (const f16*)(row + f.code_bytes()) + from / f.group;
  float scales[kSpan / 32], offsets[kSpan / 32], zero = float(f.zero());
  int64_t groups = (n + f.group - 1) / f.group, all = f.groups();
  if (f.symmetric) {
#pragma omp simd
    for (int64_t g = 0; g < groups; g++) {
      scales[g] = half(stored[g]);
      offsets[g] = -zero * scales[g];
    }
  } else {
#pragma omp simd
    for (int64_t g = 0; g < groups; g++) {
      scales[g] = half(stored[g]);
      offsets[g] = half(stored[all + g]);
    }
  }
  int shift = f.group == 32 ? 5 : f.group == 64 ? 6 : 7;
  for (int64_t i = 0; i < n; i += 512 / Bits) {
    Ints words = *(const StoredInts*)(row + (from + i) / (512 / Bits) * 64);
#pragma GCC unroll 8
    for (int k = 0; k < 32 / Bits; k++) {
      int64_t at = i + k * 16, g = min(at >> shift, groups - 1);  // beyond the last group: padding
      Floats v = __builtin_convertvector((words >> k * Bits) & ((1 << Bits) - 1), Floats) * scales[g] + offsets[g];
      *(StoredFloats*)(out + at) = v;
    }
  }
}

template <class F>
DEEM_INLINE void with_bits(const QuantFormat& f, F&& run) {
  if (f.bits == 8) run.template operator()<8>();
  else run.template operator()<4>();
}

static void dequantize(const DequantizeArgs& a) {
  with_bits(a.format, [&]<int Bits>() {
    parallel_for(a.rows, a.cols * 2, [&](int64_t begin, int64_t end) {
      float span[kSpan];
      for (int64_t r = begin; r < end; r++)
        for (int64_t c = 0; c < a.cols; c += kSpan) {
          int64_t n = min(kSpan, a.cols - c);
          dequantize_span<Bits>(a.packed + (a.row + r) * a.format.row_bytes(), a.format, a.col + c, n, span);
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

// Sums of 64 lanes, added up in order at the end: the result depends on neither threads nor m.
struct Sums {
  Floats lane[4];
};

DEEM_INLINE void add_products(const float* x, const float* w, int64_t n, Sums& sums) {
  Floats s0 = sums.lane[0], s1 = sums.lane[1], s2 = sums.lane[2], s3 = sums.lane[3];
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    s0 += *(const StoredFloats*)(x + i) * *(const StoredFloats*)(w + i);
    s1 += *(const StoredFloats*)(x + i + 16) * *(const StoredFloats*)(w + i + 16);
    s2 += *(const StoredFloats*)(x + i + 32) * *(const StoredFloats*)(w + i + 32);
    s3 += *(const StoredFloats*)(x + i + 48) * *(const StoredFloats*)(w + i + 48);
  }
  for (; i < n; i++) s0[i % 16] += x[i] * w[i];
  sums = {s0, s1, s2, s3};
}

static void quantized_gemv(const QuantizedGemvArgs& a) {
  int64_t cols = a.format.cols;
  with_bits(a.format, [&]<int Bits>() {
    parallel_for(a.rows, cols * (a.m + 1), [&](int64_t begin, int64_t end) {
      alignas(64) float span[kSpan];
      for (int64_t r = begin; r < end; r++) {
        Sums sums[kMostGemvRows] = {};
        for (int64_t c = 0; c < cols; c += kSpan) {
          int64_t n = min(kSpan, cols - c);
          dequantize_span<Bits>(a.packed + r * a.format.row_bytes(), a.format, c, n, span);
          for (int64_t m = 0; m < a.m; m++) add_products(a.x + m * cols + c, span, n, sums[m]);
        }
        for (int64_t m = 0; m < a.m; m++) {
          Floats lanes = (sums[m].lane[0] + sums[m].lane[1]) + (sums[m].lane[2] + sums[m].lane[3]);
          float total = 0;
          for (int k = 0; k < 16; k++) total += lanes[k];
          a.y[m * a.rows + r] = a.bias ? total + a.bias[r] : total;
        }
      }
    });
  });
}

static const Register r1{quantize_kernel, Device::cpu, quantize};
static const Register r2{dequantize_kernel, Device::cpu, dequantize};
static const Register r3{quantized_gemv_kernel, Device::cpu, quantized_gemv};

}  // namespace deem::DEEM_ISA
