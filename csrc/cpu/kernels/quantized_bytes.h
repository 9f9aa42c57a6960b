// Products of codes of 8 or 4 bits with rows of x as whole numbers, by AVX-512 with VNNI: 64 products an instruction.
#pragma once
#include "cpu/kernels/quantized_row.h"

namespace deem::DEEM_ISA {

// VNNI came between the third and the fourth instruction set: machines of the third are asked whether they have it.
DEEM_INLINE bool has_integers() { return DEEM_ISA_INDEX >= 3 || __builtin_cpu_supports("avx512vnni"); }

// t + products of unsigned and signed bytes, four a word.
DEEM_INLINE __m512i add_byte_products(__m512i t, __m512i u, __m512i s) {
#if DEEM_ISA_INDEX >= 3
  return _mm512_dpbusd_epi32(t, u, s);
#else
  asm("vpdpbusd %2, %1, %0" : "+v"(t) : "v"(u), "v"(s));
  return t;
#endif
}

// In each unit of 32 columns x is a whole number of at most 7 P bits times a scale, and that number is the sum of P signed bytes times
// powers of 128: P = 3 keeps what f32 sums keep, P = 2 more than bf16 has. All sums of a block of codes stay below 2^31.
//
// A row of x becomes chunks of 16 units, as many as a register has words: the units' scales, the scaled sums of their numbers (zeros
// where codes are symmetric), then blocks, each for the numbers of 64 bytes of codes: for low (and, of 4 bits, high) codes P pieces of
// 64 bytes from the highest down; and for the 16 words of the block -zero times the sum of their numbers as integers.
constexpr int64_t kUnit = 32, kUnits = 16, kChunk = kUnit * kUnits, kChunkHead = 2 * 64;
template <int Bits, int P>
constexpr int64_t kBlockBytes = (8 / Bits * P + 1) * 64;

template <int Bits, int P>
DEEM_INLINE int64_t prepared_bytes(int64_t cols) {
  return ceil_div(cols, kChunk) * kChunkHead + ceil_div(cols, int64_t(512 / Bits)) * kBlockBytes<Bits, P>;
}

// The scales of a chunk's units, and what to multiply x by.
DEEM_INLINE bool scales_of_units(__m512i most_bits, float whole, float* scales, float* inverse) {
  const __m512 most = _mm512_castsi512_ps(most_bits), full = _mm512_set1_ps(whole);
  const __mmask16 some = _mm512_test_epi32_mask(most_bits, most_bits);
  _mm512_storeu_ps(scales, _mm512_div_ps(most, full));
  _mm512_store_ps(inverse, _mm512_maskz_div_ps(some, full, most));
  // As integers the bits of infinity and NaN lie above those of all other numbers.
  return !_mm512_cmpge_epi32_mask(most_bits, _mm512_set1_epi32(0x7f800000)) &&
         !_mm512_mask_cmp_ps_mask(some, most, _mm512_set1_ps(1e-30f), _CMP_LT_OQ);
}

// False where no scale fits.
template <int Bits, int P>
static bool prepare_row(const float* x, const QuantFormat& f, int8_t* out) {
  constexpr int kHalves = 8 / Bits, kNumbers = 64 * kHalves, kBlockUnits = kNumbers / kUnit;
  const __m512i ones = _mm512_set1_epi8(1), minus_zero = _mm512_set1_epi32(-int32_t(f.zero()));
  for (int64_t from = 0; from < f.cols; from += kChunk) {
    const int64_t left = min(kChunk, f.cols - from), blocks = ceil_div(left, int64_t(kNumbers)),
                  units = blocks * kBlockUnits;
    const auto half_unit = [&](int64_t at) DEEM_ALWAYS {
      return load_part(x + from + at, max(int64_t(0), min(int64_t(16), left - at)));
    };
    float *scales = (float*)out, *sums = scales + kUnits;
    alignas(64) int32_t most[kUnits] = {};
    alignas(64) float inverse[kUnits];
    for (int64_t u = 0; u < units; u++) {
      const __m512 low = _mm512_abs_ps(half_unit(u * kUnit)), high = _mm512_abs_ps(half_unit(u * kUnit + 16));
      most[u] = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_castps_si512(low), _mm512_castps_si512(high)));
    }
    if (!scales_of_units(_mm512_load_si512(most), P == 2 ? 127 * 128 : 63 * 16384, scales, inverse)) return false;
    _mm512_storeu_ps(sums, _mm512_setzero_ps());
    out += kChunkHead;
    for (int64_t u = 0; u < units; u++) {
      int8_t* unit = out + u / kBlockUnits * kBlockBytes<Bits, P> + u % kBlockUnits * (kUnit / kHalves);
      __m512i q[2];
      for (int i = 0; i < 2; i++) {
        const __m512 scaled = _mm512_mul_ps(half_unit(u * kUnit + 16 * i), _mm512_set1_ps(inverse[u]));
        q[i] = _mm512_cvt_roundps_epi32(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        __m512i rest = q[i];
        int8_t* to = unit + i * (Bits == 4 ? P * 64 : 16);
        for (int p = 0; p < P; p++) {
          const int shift = 7 * (P - 1 - p);
          __m512i digit = rest;
          if (shift) digit = _mm512_srai_epi32(_mm512_add_epi32(rest, _mm512_set1_epi32(1 << (shift - 1))), shift);
          rest = _mm512_sub_epi32(rest, _mm512_slli_epi32(digit, shift));
          _mm_storeu_si128((__m128i*)(to + p * 64), _mm512_cvtepi32_epi8(digit));
        }
      }
      if (!f.symmetric) sums[u] = float(_mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]))) * scales[u];
    }
    for (int64_t b = 0; b < blocks; b++, out += kBlockBytes<Bits, P>) {
      __m512i sum = _mm512_setzero_si512();
      for (int p = 0; p < P; p++) {
        if (p) sum = _mm512_slli_epi32(sum, 7);
        for (int h = 0; h < kHalves; h++)
          sum = add_byte_products(sum, ones, _mm512_loadu_si512(out + (h * P + p) * 64));
      }
      _mm512_storeu_si512(out + kHalves * P * 64, _mm512_mullo_epi32(sum, minus_zero));
    }
  }
  return true;
}

// For each block of a chunk, the unit that each of its 16 words belongs to.
template <int Bits>
struct UnitsOfWords {
  static constexpr int kBlocks = kChunk * Bits / 512;
  alignas(64) int32_t of[kBlocks][16];
  constexpr UnitsOfWords() : of() {
    for (int b = 0; b < kBlocks; b++)
      for (int w = 0; w < 16; w++) of[b][w] = (b * 16 + w) / kBlocks;
  }
};
template <int Bits>
constexpr UnitsOfWords<Bits> kUnitsOfWords;

// R rows of weights from r on with M prepared rows of x, `step` bytes apart. The steps of a result are the same whatever M and R are.
template <int Bits, int P, int M, int R, bool Symmetric>
DEEM_INLINE void rows_by_integers(const QuantizedGemvArgs& a, int64_t r, const Layout& f, int64_t first,
                                  const int8_t* x, int64_t step) {
  constexpr int64_t kHalves = 8 / Bits, kNumbers = 64 * kHalves, kBlocks = UnitsOfWords<Bits>::kBlocks;
  const uint8_t* row = a.packed + r * f.row_bytes;
  const char* ahead = (const char*)row + bytes_ahead(f, R);
  alignas(64) int32_t groups_of[kUnits];
  for (int u = 0; u < kUnits; u++) groups_of[u] = int32_t(u * kUnit) >> f.shift;
  const __m512i group_of = _mm512_load_si512(groups_of), low = _mm512_set1_epi8(15);
  __m512 sum[R][M], scale[R][M];
  for (auto& of_row : sum)
    for (auto& s : of_row) s = _mm512_setzero_ps();
  for (int64_t c = 0; c < f.cols; c += kChunk, x += kChunkHead) {
    const int64_t group = c >> f.shift, count = min(kChunk >> f.shift, f.groups - group);
    const auto of_units = [&](const f16* stored) DEEM_ALWAYS {
      const __m256i halves = _mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), stored + group);
      return _mm512_permutexvar_ps(group_of, _mm512_cvtph_ps(halves));
    };
    for (int k = 0; k < R; k++) {
      const f16* stored = (const f16*)(row + k * f.row_bytes + f.code_bytes);
      // Scales are read before the codes of their row, which would be too early for what is asked for in order.
      _mm_prefetch((const char*)(stored + group) + R * f.row_bytes, _MM_HINT_T0);
      _mm_prefetch(ahead, _MM_HINT_T1);
      ahead += 64;
      const __m512 own = of_units(stored);
      for (int m = 0; m < M; m++) scale[k][m] = _mm512_mul_ps(own, _mm512_loadu_ps(x + m * step));
      if constexpr (!Symmetric) {
        const __m512 offset = of_units(stored + f.groups);
        for (int m = 0; m < M; m++) sum[k][m] = _mm512_fmadd_ps(offset, _mm512_loadu_ps(x + m * step + 64), sum[k][m]);
      }
    }
    const int8_t* block = x + kChunkHead;
    const uint8_t* at = row + c / kHalves;
    const int64_t blocks = min(kBlocks, ceil_div(f.cols - c, kNumbers));
    for (int64_t b = 0; b < blocks; b++, block += kBlockBytes<Bits, P>, at += 64) {
      const __m512i unit_of = _mm512_load_si512(kUnitsOfWords<Bits>.of[b]);
      for (int k = 0; k < R; k++) {
        _mm_prefetch(ahead, _MM_HINT_T1);
        ahead += 64;
        const __m512i bytes = _mm512_loadu_si512(at + k * f.row_bytes);
        __m512i codes[kHalves];
        if constexpr (Bits == 8) {
          codes[0] = bytes;
        } else {
          codes[0] = _mm512_and_si512(bytes, low);
          codes[1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        }
        for (int m = 0; m < M; m++) {
          const int8_t* pieces = block + m * step;
          __m512i t = _mm512_setzero_si512();
          for (int p = 0; p < P; p++) {
            if (p) t = _mm512_slli_epi32(t, 7);
            for (int h = 0; h < kHalves; h++)
              t = add_byte_products(t, codes[h], _mm512_loadu_si512(pieces + (h * P + p) * 64));
          }
          if (Symmetric) t = _mm512_add_epi32(t, _mm512_loadu_si512(pieces + kHalves * P * 64));
          sum[k][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), _mm512_permutexvar_ps(unit_of, scale[k][m]), sum[k][m]);
        }
      }
    }
    x += blocks * kBlockBytes<Bits, P>;
  }
  for (int k = 0; k < R; k++)
    for (int m = 0; m < M; m++) {
      const float total = _mm512_reduce_add_ps(sum[k][m]);
      a.y[(first + m) * a.rows + r + k] = a.bias ? total + a.bias[r + k] : total;
    }
}

}  // namespace deem::DEEM_ISA
