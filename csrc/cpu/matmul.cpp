#include "ops/matmul.h"

#include "cpu/dnnl.h"
#include "cpu/gemm.h"
#include "cpu/wide.h"

namespace deem {

constinit Kernel<PackedGemmArgs> packed_gemm_kernel{"packed_gemm"};

// bf16 where the machine multiplies it.
static void short_product(const GemmArgs& a) {
  auto matrix = [](const GemmOperand& o) { return onednn::Matrix{o.data, o.rows, o.cols, o.row_stride, o.col_stride}; };
  onednn::gemm({.batch = a.batch,
                .a = matrix(a.a),
                .b = matrix(a.b),
                .a_step = a.a.step,
                .b_step = a.b.step,
                .c_step = a.a.rows * a.c_row_stride,
                .c_row_stride = a.c_row_stride,
                .bias = a.bias,
                .c = a.c,
                .dtype = a.dtype,
                .c_dtype = a.c_dtype});
}

// Whether a product of bf16 is large enough for our own packing to pay (oneDNN's takes a tenth of the time where operands are turned over).
// Measured by `npm run bench -- linear matmul` on Zen 5.
static bool packs_pairs(const GemmArgs& a, bool a_lines, bool b_lines) {
  constexpr int64_t kLeastSide = 256, kLeastDepth = 512, kLeastProducts = 300'000'000;
  const int64_t m = a.a.rows, n = a.b.cols, k = a.a.cols;
  const bool even = k % 2 == 0 && (!a_lines || a.a.row_stride % 2 == 0) && (!b_lines || a.b.col_stride % 2 == 0);
  return even && m >= kLeastSide && n >= kLeastSide && k >= kLeastDepth && m * n * k >= kLeastProducts;
}

static void gemm(const GemmArgs& a) {
  const bool a_lines = a.a.col_stride == 1, b_lines = a.b.row_stride == 1;  // whose k numbers lie side by side
  const bool is_short = multiplies_short(a.dtype);
  if (is_short && !packs_pairs(a, a_lines, b_lines)) return short_product(a);
  packed_gemm_kernel(Device::cpu, {.batch = a.batch,
                                   .m = a.a.rows,
                                   .n = a.b.cols,
                                   .k = a.a.cols,
                                   .rows = a_lines ? RowsOf::lines : RowsOf::across,
                                   .a = {a.a.data, a_lines ? a.a.row_stride : a.a.col_stride, a.a.step, nullptr},
                                   .columns = b_lines ? ColumnsOf::lines : ColumnsOf::across,
                                   .b = {a.b.data, b_lines ? a.b.col_stride : a.b.row_stride, a.b.step, nullptr},
                                   .bias = a.bias,
                                   .c = a.c,
                                   .c_row_stride = a.c_row_stride,
                                   .c_step = a.a.rows * a.c_row_stride,
                                   .dtype = a.dtype,
                                   .c_dtype = a.c_dtype,
                                   .pairs = is_short});
}

static const Register r{gemm_kernel, Device::cpu, gemm};

}  // namespace deem
