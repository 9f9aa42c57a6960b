// y = x weight^T + bias for weights in few bits and up to 32 rows of x, on tensor cores: codes less their zero are whole numbers that
// bf16 holds exactly, and so does x after it is cut into terms of 8 bits (one where its numbers are those of bf16, three for all
// bits of f32). So every product is exact; sums over a group are f32, and its scale is applied to the sum. An offset is applied to
// the group's sum of x, which a product with ones gives in the very registers where it is needed.
//
// A warp multiplies 16 rows of the weight; the eight warps of a block take every eighth block of 128 columns and are added up in
// their order. Which column stands for which k of an mma is free as long as both operands agree: lane t of a quad takes columns
// 4t..4t + 3 and 16 + 4t.. of every 32, which are one word of codes of 4 bits, two of 8, and two vectors of x.
#include "cuda/ptx.cuh"
#include "cuda/slot.h"
#include "cuda/vec.cuh"
#include "ops/quantized_linear.h"

namespace deem::cuda {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32, kRows = 16, kBlock = 128, kPieces = kBlock / 32;

struct Problem {
  const float* x;
  const uint8_t* packed;
  const float* bias;
  float* y;
  int64_t m, rows, cols, code_bytes, row_bytes, groups;
  int pieces;  // of 32 columns, in a group
  bool symmetric, whole_words, vectors;
};

DEEM_DEVICE uint32_t load_word(const uint8_t* p, bool whole) {
  if (whole) return *reinterpret_cast<const uint32_t*>(p);
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(p);
  return halves[0] | uint32_t(halves[1]) << 16;
}

// What a lane holds of a block of columns: codes of rows g and g + 8, and the scales and offsets of the block's group t.
template <int Bits>
struct Codes {
  static constexpr int kWords = Bits == 8 ? 2 : 1;
  // What codes are less when they are multiplied. Asymmetric ones too, whose offset gets it back: sums of codes that are all
  // positive would lose bits beside those of the offset, which are nearly their opposite.
  static constexpr float kZero = 1 << (Bits - 1);
  uint32_t word[2][kPieces][kWords];
  float scale[2], offset[2];

  DEEM_DEVICE void load(const Problem& p, const uint8_t* const (&row)[2], int64_t block, int t) {
    const int in_block = kPieces / p.pieces;
    const int64_t group = block * in_block + t;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
      for (int i = 0; i < kPieces; i++) {
        const int64_t col = block * kBlock + i * 32;
#pragma unroll
        for (int w = 0; w < kWords; w++)
          word[r][i][w] = col < p.cols ? load_word(row[r] + col * Bits / 8 + w * 16 + t * 4, p.whole_words) : 0;
      }
      scale[r] = offset[r] = 0;
      if (t < in_block && group < p.groups) {
        const __half* stored = reinterpret_cast<const __half*>(row[r] + p.code_bytes) + group;
        scale[r] = to_float(stored[0]);
        if (!p.symmetric) offset[r] = fmaf(scale[r], kZero, to_float(stored[p.groups]));
      }
    }
  }
};

// Eight codes of a row as whole numbers in bf16: of the first four columns 0 and 2, 1 and 3, then the same of the others.
DEEM_DEVICE uint32_t less(uint32_t pair, float zero) {
  const __nv_bfloat162 v = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&pair), __float2bfloat162_rn(zero));
  return *reinterpret_cast<const uint32_t*>(&v);
}
DEEM_DEVICE float byte_float(uint32_t word, int byte, float zero) {
  return __uint_as_float(0x4b000000u | (word >> byte * 8 & 255)) - (8388608.0f + zero);  // 2^23 + code, exact
}
template <int Bits>
DEEM_DEVICE void decode(const uint32_t (&word)[Codes<Bits>::kWords], uint32_t (&out)[4]) {
  constexpr float zero = Codes<Bits>::kZero;
  if constexpr (Bits == 4) {
    // 0x4300 is 128 in bf16, whose last bit counts 1.
#pragma unroll
    for (int i = 0; i < 4; i++)
      out[i] = less((word[0] >> (i % 2 * 8 + i / 2 * 4) & 0x000f000fu) | 0x43004300u, 128.0f + zero);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++)
      out[i] = pack_bf16(byte_float(word[i / 2], i % 2, zero), byte_float(word[i / 2], i % 2 + 2, zero));
  }
}

// Upper halves of two floats: bf16 rounded towards zero. What they leave out of v.
DEEM_DEVICE uint32_t upper_halves(float low, float high) {
  return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u);
}
DEEM_DEVICE float rest_of(float v) {
  return fabsf(v) == INFINITY ? 0.0f : v - __uint_as_float(__float_as_uint(v) & 0xffff0000u);
}

DEEM_DEVICE void load_four(const Problem& p, int64_t row, int64_t col, float* out) {
  Vec<float, 4> v{};
  const float* from = p.x + row * p.cols + col;
  if (row < p.m && p.vectors && col < p.cols) {
    v = load_vec<4>(from);
  } else if (row < p.m) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (col + i < p.cols) v.v[i] = from[i];
  }
#pragma unroll
  for (int i = 0; i < 4; i++) out[i] = v.v[i];
}

// Tiles: of eight rows of x. Terms: of bf16 that a number of x is the sum of.
template <int Bits, int Tiles, int Terms>
__global__ void __launch_bounds__(kThreads, Tiles == 4 ? 1 : 2) quantized_gemv_kernel(Problem p) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t first = int64_t(blockIdx.x) * kRows;
  const uint8_t* row[2];
#pragma unroll
  for (int r = 0; r < 2; r++) row[r] = p.packed + (first + g + r * 8 < p.rows ? first + g + r * 8 : 0) * p.row_bytes;
  const int64_t blocks = (p.cols + kBlock - 1) / kBlock;
  float total[Tiles][4] = {}, sum[Tiles][4] = {}, x_sum[Tiles][4] = {};
  Codes<Bits> codes, next;
  if (warp < blocks) codes.load(p, row, warp, t);
  for (int64_t block = warp; block < blocks; block += kWarps) {
    if (block + kWarps < blocks) next.load(p, row, block + kWarps, t);
#pragma unroll
    for (int i = 0; i < kPieces; i++) {
      const int64_t col = block * kBlock + i * 32;
      if (col >= p.cols) break;
      uint32_t a[2][4];
#pragma unroll
      for (int r = 0; r < 2; r++) decode<Bits>(codes.word[r][i], a[r]);
      const uint32_t low[4] = {a[0][0], a[1][0], a[0][1], a[1][1]}, high[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
      const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll
      for (int j = 0; j < Tiles; j++) {
        float x[8];
        load_four(p, j * 8 + g, col + t * 4, x);
        load_four(p, j * 8 + g, col + 16 + t * 4, x + 4);
#pragma unroll
        for (int term = 0; term < Terms; term++) {
          const uint32_t b_low[2] = {upper_halves(x[0], x[2]), upper_halves(x[1], x[3])};
          const uint32_t b_high[2] = {upper_halves(x[4], x[6]), upper_halves(x[5], x[7])};
          mma_bf16(sum[j], low, b_low);
          mma_bf16(sum[j], high, b_high);
          if (!p.symmetric) {
            mma_bf16(x_sum[j], ones, b_low);
            mma_bf16(x_sum[j], ones, b_high);
          }
#pragma unroll
          for (int e = 0; e < 8; e++) x[e] = rest_of(x[e]);
        }
      }
      if ((i + 1) % p.pieces && col + 32 < p.cols) continue;
      const int from = (lane & ~3) | i / p.pieces;
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float scale = __shfl_sync(0xffffffffu, codes.scale[r], from);
        const float offset = p.symmetric ? 0.0f : __shfl_sync(0xffffffffu, codes.offset[r], from);
#pragma unroll
        for (int j = 0; j < Tiles; j++)
#pragma unroll
          for (int e = r * 2; e < r * 2 + 2; e++) {
            total[j][e] = fmaf(scale, sum[j][e], total[j][e]);
            if (!p.symmetric) total[j][e] = fmaf(offset, x_sum[j][e], total[j][e]);
            sum[j][e] = x_sum[j][e] = 0;
          }
      }
    }
    codes = next;
  }
  // A lane holds rows g and g + 8 of the weight, rows 2t and 2t + 1 of every tile of x.
  constexpr int kOutputs = kRows * Tiles * 8;
  DEEM_SHARED(float, parts, kWarps* kOutputs);
#pragma unroll
  for (int j = 0; j < Tiles; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) parts[warp * kOutputs + (j * 8 + t * 2 + e % 2) * kRows + g + e / 2 * 8] = total[j][e];
  __syncthreads();
  for (int i = int(threadIdx.x); i < kOutputs; i += kThreads) {
    const int64_t m = i / kRows, r = first + i % kRows;
    if (m >= p.m || r >= p.rows) continue;
    float result = parts[i];
#pragma unroll
    for (int w = 1; w < kWarps; w++) result += parts[w * kOutputs + i];
    p.y[m * p.rows + r] = p.bias ? result + p.bias[r] : result;
  }
}

template <int Bits, int Terms>
void launch_tiles(const Problem& p) {
  const dim3 grid(unsigned((p.rows + kRows - 1) / kRows)), block(kThreads);
  if (p.m <= 8) DEEM_LAUNCH((quantized_gemv_kernel<Bits, 1, Terms>), grid, block, 0, stream(), p);
  else if (p.m <= 16) DEEM_LAUNCH((quantized_gemv_kernel<Bits, 2, Terms>), grid, block, 0, stream(), p);
  else DEEM_LAUNCH((quantized_gemv_kernel<Bits, 4, Terms>), grid, block, 0, stream(), p);
}

void quantized_gemv(const QuantizedGemvArgs& a) {
  static_assert(kMostGemvRows <= 32);
  if (a.m == 0 || a.rows == 0) return;
  const QuantFormat& f = a.format;
  const Problem p{.x = a.x,
                  .packed = a.packed,
                  .bias = a.bias,
                  .y = a.y,
                  .m = a.m,
                  .rows = a.rows,
                  .cols = f.cols,
                  .code_bytes = f.code_bytes(),
                  .row_bytes = f.row_bytes(),
                  .groups = f.groups(),
                  .pieces = int(f.group) / 32,
                  .symmetric = f.symmetric,
                  .whole_words = (uintptr_t(f.row_bytes()) | reinterpret_cast<uintptr_t>(a.packed)) % 4 == 0,
                  .vectors = f.cols % 4 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0};
  if (f.bits == 8) {
    if (a.short_x) launch_tiles<8, 1>(p);
    else launch_tiles<8, 3>(p);
  } else {
    if (a.short_x) launch_tiles<4, 1>(p);
    else launch_tiles<4, 3>(p);
  }
}

}  // namespace

DEEM_CUDA_KERNEL("quantized_gemv", quantized_gemv);

}  // namespace deem::cuda
