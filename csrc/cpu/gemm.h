// Matrix products. Operands are copied into panels first, so that the inner loop reads memory in its own order however they lie, 16-bit numbers are
// widened on the way, and the patches of a convolution are never written out. Of bf16 in pairs only one operand is copied,
// and of f32 where rows can be read in place.
#pragma once
#include "ops/conv.h"
#include "ops/matmul.h"

namespace deem {

// What an operand is made of: by its lines (rows of a, columns of b), each of k numbers.
enum class RowsOf {
  lines,    // number p of line i lies at i * stride + p
  across,   // at i + p * stride
  patches,  // line i is output pixel i, p is (kh, kw, in): the numbers of x under the taps
};
enum class ColumnsOf {
  lines,    // as above
  across,   // as above
  patches,  // the transpose: line i is (kh, kw, in), p an output pixel
  taps,     // of weights [out, kh, kw, in]: line i is an input channel, p is (KH - 1 - kh, KW - 1 - kw, out)
};

struct PackSource {
  const void* data;
  int64_t stride;         // of lines or rows, elements
  int64_t step;           // from one item of the batch to the next
  const ConvSizes* conv;  // of patches and taps
};

// c[m, n] = sum over k of a b + bias. a and b share `dtype`, sums are f32.
struct PackedGemmArgs {
  int64_t batch, m, n, k;
  RowsOf rows;
  PackSource a;
  ColumnsOf columns;
  PackSource b;
  const void* bias;  // [n] of `dtype`, or null
  void* c;
  int64_t c_row_stride, c_step;  // elements
  DType dtype, c_dtype;
  GemmAfter* after = nullptr;      // of pair_gemm_kernel, which does it where c is bf16
  const void* packed_b = nullptr;  // of pair_gemm_kernel: b as pair_panels_kernel left it, or null
};
extern Kernel<PackedGemmArgs> packed_gemm_kernel;
// The same of bf16 that the machine multiplies in pairs; operands are lines or across, c is bf16 or f32.
extern Kernel<PackedGemmArgs> pair_gemm_kernel;

// n lines of k numbers, one after the other, as the panels that pair_gemm_kernel reads.
struct PairPanelsArgs {
  const void* lines;
  int64_t k, n;
  void* to;  // [pair_panel_numbers(k, n)]
};
extern Kernel<PairPanelsArgs> pair_panels_kernel;
inline int64_t pair_panel_numbers(int64_t k, int64_t n) {
  constexpr int64_t kColumns = 16;  // of a register
  return (n + kColumns - 1) / kColumns * kColumns * ((k + 1) / 2 * 2);
}

}  // namespace deem
