// What the ways to multiply matrices share: the problem as lines of contiguous elements, and who takes it.
#pragma once
#include "ops/matmul.h"

namespace deem::cuda {

// An operand whose contiguous lines run along k (a line for every row of a or column of b) or across it (a line for every k).
struct GemmSide {
  const void* data;
  int64_t stride, step;  // elements between lines, between items of the batch
  bool along_k;
  int width;  // bytes that every piece of a line may be copied by: 16, 4, or one element
};

// c [m, n] = a b + bias, `batch` times. With splits > 1 each of them sums its part of k into `partial` [splits, batch, m, n].
struct GemmProblem {
  GemmSide a, b;
  const void* bias;
  void* c;
  float* partial;
  int64_t batch, m, n, k, c_stride, c_step;
  int64_t tiles_m, tiles_n, splits, k_split;  // k_split: length of a part, a multiple of the tile's depth
  bool c_wide;                                // c is f32 whatever the operands are
  bool c_vector;                              // rows of c allow stores of 16 bytes (8 where it is f32)
};

GemmProblem gemm_problem(const GemmArgs& a);

// Tiles of the kernels, from large to small; which one, and in how many parts of k, is said by plan_tiles.
struct GemmTile {
  int m, n, depth;
};
int plan_tiles(GemmProblem& p, const GemmTile* tiles, int count, int sms);

// Each launches the kernel of its dtype over a problem without its tiles planned, and fills c or returns a partial problem's sums to it.
void gemm_bf16(GemmProblem p);
void gemm_f16(GemmProblem p);
void gemm_f32(GemmProblem p);

// Adds the parts up in their order and rounds once. dtype: of bias, and of c unless c_wide.
void sum_splits(const GemmProblem& p, DType dtype);

// False where cuBLASLt is absent, switched off (DEEM_CUBLASLT=0) or has nothing for this problem.
bool cublaslt_gemm(const GemmArgs& a);

}  // namespace deem::cuda
