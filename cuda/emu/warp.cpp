// Matrix instructions of a warp, from the lanes' registers (cuda/ptx.cuh has the layout).
#include "cuda/emu/ptx.h"

namespace deem::emu {

namespace {

using Columns = float __attribute__((vector_size(32)));  // a row of d or b
struct Tile {
  float a[16][16];
  Columns b[16];
};

float bf16_low(uint32_t v) { return std::bit_cast<float>(v << 16); }
float bf16_high(uint32_t v) { return std::bit_cast<float>(v & 0xffff0000u); }
float f16_low(uint32_t v) {
  _Float16 h;
  __builtin_memcpy(&h, &v, 2);
  return float(h);
}
float f16_high(uint32_t v) { return f16_low(v >> 16); }

const MmaIn& input(const Lanes& lanes, int l) { return *static_cast<const MmaIn*>(lanes.in[l]); }

// d += a b over the 16 columns of a; sums run in the order of the columns. Four rows at once, since each is a chain of additions.
void multiply(const Lanes& lanes, const Tile& t) {
  Columns d[16];
  for (int l = 0; l < kWarp; l++)
    for (int i = 0; i < 4; i++) d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = std::bit_cast<float>(input(lanes, l).d[i]);
  for (int row = 0; row < 16; row += 4) {
    Columns sum[4] = {d[row], d[row + 1], d[row + 2], d[row + 3]};
    for (int k = 0; k < 16; k++)
      for (int r = 0; r < 4; r++) sum[r] += t.a[row + r][k] * t.b[k];
    for (int r = 0; r < 4; r++) d[row + r] = sum[r];
  }
  for (int l = 0; l < kWarp; l++)
    for (int i = 0; i < 4; i++) static_cast<float*>(lanes.out[l])[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}

template <float (*LOW)(uint32_t), float (*HIGH)(uint32_t)>
void mma_16bit(const Lanes& lanes) {
  Tile tile;
  for (int l = 0; l < kWarp; l++) {
    const int g = l / 4, t = l % 4;
    const MmaIn& in = input(lanes, l);
    for (int i = 0; i < 4; i++) {
      float* a = &tile.a[g + i % 2 * 8][2 * t + i / 2 * 8];
      a[0] = LOW(in.a[i]), a[1] = HIGH(in.a[i]);
    }
    for (int i = 0; i < 2; i++) {
      tile.b[2 * t + 8 * i][g] = LOW(in.b[i]);
      tile.b[2 * t + 8 * i + 1][g] = HIGH(in.b[i]);
    }
  }
  multiply(lanes, tile);
}

}  // namespace

void mma_bf16_op(const Lanes& lanes, uint32_t) { mma_16bit<bf16_low, bf16_high>(lanes); }
void mma_f16_op(const Lanes& lanes, uint32_t) { mma_16bit<f16_low, f16_high>(lanes); }

template <bool TRANS>
void ldmatrix_op(const Lanes& lanes, uint32_t) {
  for (int m = 0; m < 4; m++) {
    uint16_t e[8][8];
    for (int r = 0; r < 8; r++) __builtin_memcpy(e[r], static_cast<const Row*>(lanes.in[8 * m + r])->words, 16);
    for (int l = 0; l < kWarp; l++) {
      const int g = l / 4, t = l % 4 * 2;
      const uint32_t low = TRANS ? e[t][g] : e[g][t], high = TRANS ? e[t + 1][g] : e[g][t + 1];
      static_cast<uint32_t*>(lanes.out[l])[m] = low | high << 16;
    }
  }
}
template void ldmatrix_op<false>(const Lanes&, uint32_t);
template void ldmatrix_op<true>(const Lanes&, uint32_t);

}  // namespace deem::emu
