// Products of codes of 8 or 4 bits with rows of x as whole numbers, by AVX2: 16 products an instruction.
#pragma once
#include "cpu/kernels/quantized_row.h"

namespace deem::DEEM_ISA {

DEEM_INLINE bool has_integers() { return true; }

// In each unit of 32 columns x is a whole number times a scale. P = 2 makes it one signed word of 16 bits, P = 3 the sum of two, the
// higher one times 2^11. All sums of a unit stay below 2^31.
//
// A row of x becomes chunks of 8 units, as many as a register has words: the units' scales, the scaled sums of their numbers (zeros
// where codes are symmetric), then for each unit its numbers, the higher words first, and for the 8 sums that a unit gives -zero times
// the sum of their numbers.
constexpr int64_t kUnits = 8, kUnit = 32, kChunk = kUnit * kUnits, kChunkHead = 2 * 32;
constexpr int kLowBits = 11;
template <int P>
constexpr int64_t kUnitBytes = (P - 1) * 64 + 32;
template <int Bits>
constexpr int64_t kBlockUnits = 512 / Bits / kUnit;

template <int Bits, int P>
DEEM_INLINE int64_t prepared_bytes(int64_t cols) {
  return ceil_div(cols, kChunk) * kChunkHead + ceil_div(cols, int64_t(512 / Bits)) * kBlockUnits<Bits> * kUnitBytes<P>;
}

DEEM_INLINE __m128i upper_half(__m256i v) { return _mm256_extracti128_si256(v, 1); }
DEEM_INLINE int32_t most_of(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), upper_half(v));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
DEEM_INLINE int32_t sum_of(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), upper_half(v));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
// 16 words in their order.
DEEM_INLINE __m256i to_words(__m256i low, __m256i high) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
}

// The products of 32 codes with the numbers of a unit, four each.
template <int P>
DEEM_INLINE __m256i products(__m256i low, __m256i high, const int8_t* numbers) {
  __m256i t = _mm256_setzero_si256();
  for (int p = 0; p < P - 1; p++) {
    const __m256i_u* of = (const __m256i_u*)numbers + 2 * p;
    const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_loadu_si256(of)),
                                          _mm256_madd_epi16(high, _mm256_loadu_si256(of + 1)));
    t = p ? _mm256_add_epi32(_mm256_slli_epi32(t, kLowBits), both) : both;
  }
  return t;
}

// False where no scale fits.
template <int Bits, int P>
static bool prepare_row(const float* x, const QuantFormat& f, int8_t* out) {
  constexpr float kMost = P == 2 ? 32767 : Bits == 8 ? 1 << 21 : 1 << 24;
  const __m256i ones = _mm256_set1_epi16(1), minus_zero = _mm256_set1_epi32(-int32_t(f.zero()));
  const int64_t units = ceil_div(f.cols, int64_t(512 / Bits)) * kBlockUnits<Bits>;
  float *scales = nullptr, *sums = nullptr;
  for (int64_t u = 0; u < units; u++) {
    if (u % kUnits == 0) {
      scales = (float*)out, sums = scales + kUnits, out += kChunkHead;
      store_vec(scales, Vec{}), store_vec(sums, Vec{});
    }
    const int64_t n = f.cols - u * kUnit;
    const float* at = x + u * kUnit;
    float part[kUnit] = {};
    if (n < kUnit) {
      for (int64_t i = 0; i < n; i++) part[i] = at[i];
      at = part;
    }
    const __m256i size = _mm256_set1_epi32(0x7fffffff);
    __m256i most_bits = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++)
      most_bits = _mm256_max_epi32(most_bits, _mm256_and_si256((__m256i)load_vec(at + 8 * i), size));
    // As integers the bits of infinity and NaN lie above those of all other numbers.
    const int32_t bits = most_of(most_bits);
    const float most = std::bit_cast<float>(bits);
    if (bits >= 0x7f800000 || (bits && most < 1e-30f)) return false;
    const float inverse = bits ? kMost / most : 0.0f;
    __m256i q[4];
    for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(load_vec(at + 8 * i) * inverse);
    for (int p = 0; p < P - 1; p++) {
      __m256i digit[4];
      for (int i = 0; i < 4; i++) {
        digit[i] = q[i];
        if (p == P - 2) continue;
        digit[i] = _mm256_srai_epi32(_mm256_add_epi32(q[i], _mm256_set1_epi32(1 << (kLowBits - 1))), kLowBits);
        q[i] = _mm256_sub_epi32(q[i], _mm256_slli_epi32(digit[i], kLowBits));
      }
      _mm256_storeu_si256((__m256i_u*)out + 2 * p, to_words(digit[0], digit[1]));
      _mm256_storeu_si256((__m256i_u*)out + 2 * p + 1, to_words(digit[2], digit[3]));
    }
    const __m256i sum = products<P>(ones, ones, out);
    _mm256_storeu_si256((__m256i_u*)(out + (P - 1) * 64), _mm256_mullo_epi32(sum, minus_zero));
    scales[u % kUnits] = most / kMost;
    if (!f.symmetric) sums[u % kUnits] = float(sum_of(sum)) * scales[u % kUnits];
    out += kUnitBytes<P>;
  }
  return true;
}

// R rows of weights from r on with M prepared rows of x, `step` bytes apart. The steps of a result are the same whatever M and R are.
template <int Bits, int P, int M, int R, bool Symmetric>
DEEM_INLINE void rows_by_integers(const QuantizedGemvArgs& a, int64_t r, const Layout& f, int64_t first,
                                  const int8_t* x, int64_t step) {
  constexpr int64_t kCodeBytes = kUnit * Bits / 8;
  const uint8_t* row = a.packed + r * f.row_bytes;
  const char* ahead = (const char*)row + bytes_ahead(f, R);
  alignas(32) int32_t groups_of[kUnits];
  for (int u = 0; u < kUnits; u++) groups_of[u] = int32_t(u * kUnit) >> f.shift;
  const __m256i group_of = _mm256_load_si256((const __m256i*)groups_of), four_bits = _mm256_set1_epi16(15);
  Vec sum[R][M];
  for (auto& of_row : sum)
    for (auto& s : of_row) s = Vec{};
  for (int64_t c = 0; c < f.cols; c += kChunk, x += kChunkHead) {
    const int64_t group = c >> f.shift, there = min(kUnits, f.groups - group);
    const auto of_units = [&](const f16* stored) DEEM_ALWAYS {
      alignas(16) f16 some[kUnits] = {};
      const f16* at = stored + group;
      if (there < kUnits) {
        for (int64_t g = 0; g < there; g++) some[g] = at[g];
        at = some;
      }
      return _mm256_permutevar8x32_ps(load_vec(at), group_of);
    };
    alignas(32) float scale[R][M][kUnits];
    for (int k = 0; k < R; k++) {
      const f16* stored = (const f16*)(row + k * f.row_bytes + f.code_bytes);
      // Scales are read before the codes of their row, which would be too early for what is asked for in order.
      _mm_prefetch((const char*)(stored + group) + R * f.row_bytes, _MM_HINT_T0);
      const Vec own = of_units(stored);
      for (int m = 0; m < M; m++) store_vec(scale[k][m], own * load_vec((const float*)(x + m * step)));
      if constexpr (!Symmetric) {
        const Vec offset = of_units(stored + f.groups);
        for (int m = 0; m < M; m++)
          sum[k][m] = _mm256_fmadd_ps(offset, load_vec((const float*)(x + m * step) + kUnits), sum[k][m]);
      }
    }
    const int8_t* numbers = x + kChunkHead;
    const uint8_t* at = row + c * Bits / 8;
    const int64_t units = min(kUnits, ceil_div(f.cols - c, kUnit * kBlockUnits<Bits>) * kBlockUnits<Bits>);
    for (int64_t first_unit = 0; first_unit < units; first_unit += kBlockUnits<Bits>) {
      for (int k = 0; k < R; k++) _mm_prefetch(ahead + k * 64, _MM_HINT_T1);
      ahead += R * 64;
      for (int64_t u = first_unit; u < first_unit + kBlockUnits<Bits>; u++, numbers += kUnitBytes<P>, at += kCodeBytes)
        for (int k = 0; k < R; k++) {
          const auto words = [&](int64_t i) DEEM_ALWAYS {
            return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i_u*)(at + k * f.row_bytes) + i));
          };
          __m256i low = words(0), high;
          if constexpr (Bits == 8) high = words(1);
          else high = _mm256_srli_epi16(low, 4), low = _mm256_and_si256(low, four_bits);
          for (int m = 0; m < M; m++) {
            const int8_t* of = numbers + m * step;
            __m256i t = products<P>(low, high, of);
            if (Symmetric) t = _mm256_add_epi32(t, _mm256_loadu_si256((const __m256i_u*)(of + (P - 1) * 64)));
            sum[k][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(t), _mm256_broadcast_ss(scale[k][m] + u), sum[k][m]);
          }
        }
    }
    x += units * kUnitBytes<P>;
  }
  for (int k = 0; k < R; k++)
    for (int m = 0; m < M; m++) {
      const __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum[k][m]), _mm256_extractf128_ps(sum[k][m], 1));
      const __m128 two = _mm_add_ps(half, _mm_movehl_ps(half, half));
      const float total = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
      a.y[(first + m) * a.rows + r + k] = a.bias ? total + a.bias[r + k] : total;
    }
}

}  // namespace deem::DEEM_ISA
