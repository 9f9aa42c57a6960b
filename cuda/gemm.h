// What the ways to multiply matrices share: the problem as lines of contiguous elements, and who takes it.
#pragma once
#include <initializer_list>

#include "ops/matmul.h"

namespace deem::cuda {

// An operand whose contiguous lines run along k (a line for every row of a or column of b) or across it (a line for every k).
struct GemmSide {
  const void* data = nullptr;
  int64_t stride = 0, step = 0;  // elements between lines, between items of the batch
  bool along_k = false;
  int width = 0;  // bytes that every piece of a line may be copied by: 16, 4, or one element
};

// c [m, n] = a b + bias, `batch` times. With splits > 1 each of them sums its part of k into `partial` [splits, batch, m, n].
struct GemmProblem {
  GemmSide a, b;
  const void* bias = nullptr;
  void* c = nullptr;
  float* partial = nullptr;
  int64_t batch = 0, m = 0, n = 0, k = 0, c_stride = 0, c_step = 0;
  int64_t tiles_m = 0, tiles_n = 0, splits = 1, k_split = 0;  // k_split: a part of k, a multiple of the tile's depth
  bool c_wide = false;                                        // c is f32 whatever the operands are
  bool c_vector = false;                                      // every row of c begins at a multiple of 16 bytes
};

struct GemmTile {
  int m, n, depth;
};
// Index of one of a kernel's tiles, from large to small; sets p's tiles and the parts that k is summed in.
int plan_tiles(GemmProblem& p, std::initializer_list<GemmTile> tiles);

// Fill c. Tiles are planned here.
void gemm_bf16(GemmProblem p);
void gemm_f16(GemmProblem p);
void gemm_f32(GemmProblem p);

// Adds the parts up in their order and rounds once. dtype: of bias, and of c unless c_wide.
void sum_splits(const GemmProblem& p, DType dtype);

}  // namespace deem::cuda
