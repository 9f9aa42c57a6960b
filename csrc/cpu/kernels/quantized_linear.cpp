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
  float scale[kSpan / 32 + kLanes], offset[kSpan / 32 + kLanes];  // room for reading whole registers
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
  for (int64_t g = count; g < count + 4; g++)
    out.scale[g] = out.offset[g] = 0;  // of a block that the row does not fill
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

// ---- few rows of x ------------------------------------------------------------------------------------------------------

// Sums of 64 lanes, added up half by half at the end: the result depends on neither threads nor m.
struct Sums {
  float lane[64];
};
DEEM_INLINE float total_of(Sums& sums) {
  for (int half = 32; half > 0; half /= 2)
#pragma omp simd
    for (int k = 0; k < half; k++) sums.lane[k] += sums.lane[k + half];
  return sums.lane[0];
}

DEEM_INLINE void add_products(const float* x, const float* w, int64_t n, Sums& sums) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
#pragma omp simd
    for (int64_t k = 0; k < 64; k++) sums.lane[k] += x[i + k] * w[i + k];
  for (; i < n; i++) sums.lane[i % 64] += x[i] * w[i];
}

// A weight is turned into floats in cache and used for all rows of x.
static void by_floats(const QuantizedGemvArgs& a) {
  const Layout f(a.format);
  const int64_t cols = f.cols;
  with_bits(a.format, [&]<int Bits>() {
    parallel_for(a.rows, cols * (a.m + 1), [&](int64_t begin, int64_t end) {
      alignas(64) float span[kSpan];
      for (int64_t r = begin; r < end; r++) {
        Sums sums[kMostGemvRows] = {};
        for (int64_t c = 0; c < cols; c += kSpan) {
          int64_t n = min(kSpan, cols - c);
          dequantize_span<Bits>(a.packed + r * f.row_bytes, f, c, n, span);
          for (int64_t m = 0; m < a.m; m++) add_products(a.x + m * cols + c, span, n, sums[m]);
        }
        for (int64_t m = 0; m < a.m; m++) {
          const float total = total_of(sums[m]);
          a.y[m * a.rows + r] = a.bias ? total + a.bias[r] : total;
        }
      }
    });
  });
}

#if DEEM_ISA_INDEX == 1
// The sums of by_floats for one row of x, in the same order: codes become floats in registers, and the 64 lanes stay there.
template <int Bits>
static float one_row_by_floats(const uint8_t* row, const Layout& f, const float* x) {
  const int64_t whole = f.cols / 64 * 64;
  Vec lane[8];
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) lane[k] = Vec{};
  for (int64_t c = 0; c < whole; c += kSpan) {
    const int64_t n = min(kSpan, whole - c);
    Groups groups;
    load_groups(row, f, c, n, groups);
    for (int64_t i = 0; i < n; i += 64)
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        const int64_t at = i + half * 32;
        const Vec scale = _mm256_broadcast_ss(groups.scale + (at >> f.shift)),
                  offset = _mm256_broadcast_ss(groups.offset + (at >> f.shift));
        const uint8_t* codes = row + (c + at) * Bits / 8;
        __m128i low, high;  // 16 codes each
        if constexpr (Bits == 8) {
          low = _mm_loadu_si128((const __m128i_u*)codes), high = _mm_loadu_si128((const __m128i_u*)codes + 1);
        } else {
          const __m128i bytes = _mm_loadu_si128((const __m128i_u*)codes), four = _mm_set1_epi8(15);
          low = _mm_and_si128(bytes, four), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), four);
        }
        const auto add = [&](__m128i eight, Vec & to, int64_t first) __attribute__((always_inline)) {
          const Vec weight = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight)), scale, offset);
          to = _mm256_fmadd_ps(load_vec(x + c + at + first), weight, to);
        };
        add(low, lane[half * 4], 0), add(_mm_unpackhi_epi64(low, low), lane[half * 4 + 1], 8);
        add(high, lane[half * 4 + 2], 16), add(_mm_unpackhi_epi64(high, high), lane[half * 4 + 3], 24);
      }
  }
  Sums sums;
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) store_vec(sums.lane + k * kLanes, lane[k]);
  if (whole < f.cols) {
    alignas(64) float span[kSpan];
    const int64_t c = whole / kSpan * kSpan;
    dequantize_span<Bits>(row, f, c, f.cols - c, span);
    for (int64_t i = whole; i < f.cols; i++) sums.lane[i % 64] = fused(x[i], span[i - c], sums.lane[i % 64]);
  }
  return total_of(sums);
}

static void one_by_floats(const QuantizedGemvArgs& a) {
  const Layout f(a.format);
  with_bits(a.format, [&]<int Bits>() {
    parallel_chunks(a.rows, a.format.cols * 2, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        const float total = one_row_by_floats<Bits>(a.packed + r * f.row_bytes, f, a.x);
        a.y[r] = a.bias ? total + a.bias[r] : total;
      }
    });
  });
}
#endif

#if DEEM_ISA_INDEX >= 2
// VNNI came between the third and the fourth instruction set: machines of the third are asked whether they have it.
DEEM_INLINE bool has_byte_products() { return DEEM_ISA_INDEX >= 3 || __builtin_cpu_supports("avx512vnni"); }

// t + products of unsigned and signed bytes, four a word.
DEEM_INLINE __m512i add_byte_products(__m512i t, __m512i u, __m512i s) {
#if DEEM_ISA_INDEX >= 3
  return _mm512_dpbusd_epi32(t, u, s);
#else
  asm("vpdpbusd %2, %1, %0" : "+v"(t) : "v"(u), "v"(s));
  return t;
#endif
}

// Codes times whole numbers, 64 products an instruction. In each group of 32 columns x is a whole number of at most
// 7 P bits times a scale, and that number is the sum of P signed bytes times powers of 128: P = 3 keeps what f32 sums keep,
// P = 2 more than bf16 has. All sums of a block of codes stay below 2^31.
//
// A row of x becomes blocks, each for the numbers of 64 bytes of codes: for low (and, of 4 bits, high) codes P pieces of 64
// bytes from the highest down; then for the 16 words of the block -zero times the sum of their numbers as integers, the scale of x,
// and the scaled sum of the numbers.
template <int Bits, int P>
constexpr int64_t kBlockBytes = (8 / Bits * P + 3) * 64;

// The sums of four neighbours each: four numbers.
DEEM_INLINE __m128i sums_of_four(__m512i q) {
  q = _mm512_add_epi32(q, _mm512_shuffle_epi32(q, _MM_PERM_CDAB));
  q = _mm512_add_epi32(q, _mm512_shuffle_epi32(q, _MM_PERM_BADC));
  return _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, q));
}

template <int Bits, int P>
static bool prepare_row(const float* x, const QuantFormat& f, int8_t* out) {
  constexpr int kHalves = 8 / Bits, kNumbers = 64 * kHalves, kGroups = kNumbers / 32;
  constexpr int kWords = 16 / kGroups;  // of the block that belong to a group
  constexpr float kMost = P == 2 ? 127 * 128 : 63 * 16384;
  const __m512 one_half = _mm512_set1_ps(0.5f), infinity = _mm512_set1_ps(__builtin_inff());
  for (int64_t from = 0; from < f.cols; from += kNumbers, out += kBlockBytes<Bits, P>) {
    int32_t* zeros = (int32_t*)(out + kHalves * P * 64);
    float *scales = (float*)(zeros + 16), *sums = scales + 16;
    for (int g = 0; g < kGroups; g++) {
      const int64_t at = from + g * 32, n = max(int64_t(0), min(int64_t(32), f.cols - at));
      const uint32_t there = n == 32 ? ~0u : (1u << n) - 1;
      __m512 v[2], most_of = _mm512_setzero_ps();
      __mmask16 finite = 0xffff;
      for (int i = 0; i < 2; i++) {
        v[i] = _mm512_maskz_loadu_ps(__mmask16(there >> 16 * i), x + at + 16 * i);
        const __m512 size = _mm512_abs_ps(v[i]);
        finite &= _mm512_cmp_ps_mask(size, infinity, _CMP_LT_OQ);
        most_of = _mm512_max_ps(most_of, size);
      }
      const float most = _mm512_reduce_max_ps(most_of);
      if (finite != 0xffff || (most > 0 && most < 1e-30f)) return false;
      const float scale = most / kMost, inverse = most > 0 ? kMost / most : 0.0f;
      __m512i q[2];
      for (int i = 0; i < 2; i++) {
        const __m512 scaled = _mm512_add_ps(_mm512_mul_ps(v[i], _mm512_set1_ps(inverse)), one_half);
        q[i] = _mm512_cvt_roundps_epi32(scaled, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        __m512i rest = q[i];
        int8_t* to = out + (Bits == 4 ? i * P * 64 + g * 16 : g * 32 + i * 16);
        for (int p = 0; p < P; p++) {
          const int shift = 7 * (P - 1 - p);
          __m512i digit = rest;
          if (shift) digit = _mm512_srai_epi32(_mm512_add_epi32(rest, _mm512_set1_epi32(1 << (shift - 1))), shift);
          rest = _mm512_sub_epi32(rest, _mm512_slli_epi32(digit, shift));
          _mm_storeu_si128((__m128i*)(to + p * 64), _mm512_cvtepi32_epi8(digit));
        }
      }
      alignas(16) int32_t whole[8];
      const __m128i low = sums_of_four(q[0]), high = sums_of_four(q[1]);
      _mm_store_si128((__m128i*)whole, Bits == 4 ? _mm_add_epi32(low, high) : low);
      _mm_store_si128((__m128i*)whole + 1, high);
      for (int w = 0; w < kWords; w++) {
        zeros[g * kWords + w] = whole[w] * -int32_t(f.zero());
        scales[g * kWords + w] = scale;
        sums[g * kWords + w] = float(whole[w]) * scale;
      }
    }
  }
  return true;
}

// R rows of weights from r on with M prepared rows of x, `step` bytes apart. A block of x is three to seven times as long as one of
// weights, so that one row of x is read for several rows of weights.
template <int Bits, int P, int M, int R, bool Symmetric>
DEEM_INLINE void rows_by_integers(const QuantizedGemvArgs& a, int64_t r, const Layout& f, int64_t first,
                                  const int8_t* x, int64_t step) {
  constexpr int64_t kHalves = 8 / Bits, kNumbers = 64 * kHalves;
  const uint8_t* row = a.packed + r * f.row_bytes;
  // Which group of a block each of the 16 words belongs to.
  const int shift = f.shift;
  alignas(64) int32_t order[16];
  for (int w = 0; w < 16; w++) order[w] = int32_t(w * kNumbers / 16) >> shift;
  const __m512i index = _mm512_load_si512(order), low = _mm512_set1_epi8(15);
  // The groups of a block are at most four: each quarter of the register holds them all.
  const auto of_words = [&](const float* group) {
    return _mm512_permutexvar_ps(index, _mm512_broadcast_f32x4(_mm_loadu_ps(group)));
  };
  __m512 sum[R][M];
  for (auto& of_row : sum)
    for (auto& s : of_row) s = _mm512_setzero_ps();
  for (int64_t c = 0; c < f.cols; c += kSpan) {
    const int64_t n = min(kSpan, f.cols - c);
    Groups groups[R];
    for (int k = 0; k < R; k++) load_groups(row + k * f.row_bytes, f, c, n, groups[k]);
    for (int64_t i = 0; i < n; i += kNumbers, x += kBlockBytes<Bits, P>)
      for (int k = 0; k < R; k++) {
        const uint8_t* at_codes = row + k * f.row_bytes + (c + i) / kHalves;
        // A row's scales, read before its codes, hide from the hardware what comes next: the rest of this row, or the next rows.
        _mm_prefetch((const char*)at_codes + (R == 1 ? 1536 : R * f.row_bytes), _MM_HINT_T0);
        const __m512i bytes = _mm512_loadu_si512(at_codes);
        __m512i codes[kHalves];
        if constexpr (Bits == 8) {
          codes[0] = bytes;
        } else {
          codes[0] = _mm512_and_si512(bytes, low);
          codes[1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        }
        const __m512 scale = of_words(groups[k].scale + (i >> shift));
        for (int m = 0; m < M; m++) {
          const int8_t* at = x + m * step;
          __m512i t = _mm512_setzero_si512();
          for (int p = 0; p < P; p++) {
            if (p) t = _mm512_slli_epi32(t, 7);
            for (int h = 0; h < kHalves; h++)
              t = add_byte_products(t, codes[h], _mm512_loadu_si512(at + (h * P + p) * 64));
          }
          const int8_t* rest = at + kHalves * P * 64;
          __m512& to = sum[k][m];
          if (Symmetric) t = _mm512_add_epi32(t, _mm512_loadu_si512(rest));
          to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), _mm512_mul_ps(scale, _mm512_loadu_ps(rest + 64)), to);
          if (!Symmetric)
            to = _mm512_fmadd_ps(of_words(groups[k].offset + (i >> shift)), _mm512_loadu_ps(rest + 128), to);
        }
      }
  }
  for (int k = 0; k < R; k++)
    for (int m = 0; m < M; m++) {
      const float total = _mm512_reduce_add_ps(sum[k][m]);
      a.y[(first + m) * a.rows + r + k] = a.bias ? total + a.bias[r + k] : total;
    }
}

template <int Bits, int P, bool Symmetric>
static bool by_integers(const QuantizedGemvArgs& a) {
  const Layout f(a.format);
  const int64_t numbers = 512 / Bits, step = (a.format.cols + numbers - 1) / numbers * kBlockBytes<Bits, P>;
  for (int64_t m = 0; m < a.m; m++)
    if (!prepare_row<Bits, P>(a.x + m * a.format.cols, a.format, (int8_t*)a.scratch + m * step)) return false;
  parallel_chunks(a.rows, a.format.cols * (a.m + 1), [&](int64_t begin, int64_t end) {
    const int8_t* x = (const int8_t*)a.scratch;
    const int64_t fours = a.m / 4 * 4;
    for (int64_t r = begin; r < end; r++)
      for (int64_t m = 0; m < fours; m += 4) rows_by_integers<Bits, P, 4, 1, Symmetric>(a, r, f, m, x + m * step, step);
    for (int64_t m = fours; m < a.m; m++) {
      int64_t r = begin;
      for (; r + 4 <= end; r += 4) rows_by_integers<Bits, P, 1, 4, Symmetric>(a, r, f, m, x + m * step, step);
      for (; r < end; r++) rows_by_integers<Bits, P, 1, 1, Symmetric>(a, r, f, m, x + m * step, step);
    }
  });
  return true;
}

template <int P>
static bool by_integers_of(const QuantizedGemvArgs& a) {
  if (a.format.bits == 8) return a.format.symmetric ? by_integers<8, P, true>(a) : by_integers<8, P, false>(a);
  return a.format.symmetric ? by_integers<4, P, true>(a) : by_integers<4, P, false>(a);
}

// Rows that hold what no scale fits (infinities, NaN, only tiny numbers) go the way of floats.
static void quantized_gemv(const QuantizedGemvArgs& a) {
  if (!has_byte_products() || !(a.short_x ? by_integers_of<2>(a) : by_integers_of<3>(a))) by_floats(a);
}
#elif DEEM_ISA_INDEX == 1
static void quantized_gemv(const QuantizedGemvArgs& a) { a.m == 1 ? one_by_floats(a) : by_floats(a); }
#else
static void quantized_gemv(const QuantizedGemvArgs& a) { by_floats(a); }
#endif

static const Register r1{quantize_kernel, Device::cpu, quantize};
static const Register r2{dequantize_kernel, Device::cpu, dequantize};
static const Register r3{quantized_gemv_kernel, Device::cpu, quantized_gemv};

}  // namespace deem::DEEM_ISA
