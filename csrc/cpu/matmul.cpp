#include "ops/matmul.h"

#include "cpu/gemm.h"
#include "cpu/wide.h"

namespace deem {

constinit Kernel<PackedGemmArgs> packed_gemm_kernel{"packed_gemm"};
constinit Kernel<PackedGemmArgs> pair_gemm_kernel{"pair_gemm"};
constinit Kernel<PairPanelsArgs> pair_panels_kernel{"pair_panels"};

// Where the machine multiplies them, and the kernel for it was built.
static bool in_pairs(DType t) { return multiplies_short(t) && pair_gemm_kernel.fn[int(Device::cpu)][current_isa()]; }

static void gemm(const GemmArgs& g) {
  const bool rows = g.a.col_stride == 1, columns = g.b.row_stride == 1;  // whether k numbers lie side by side
  const auto& kernel = in_pairs(g.dtype) ? pair_gemm_kernel : packed_gemm_kernel;
  kernel(Device::cpu, {.batch = g.batch,
                       .m = g.a.rows,
                       .n = g.b.cols,
                       .k = g.a.cols,
                       .rows = rows ? RowsOf::lines : RowsOf::across,
                       .a = {g.a.data, rows ? g.a.row_stride : g.a.col_stride, g.a.step, nullptr},
                       .columns = columns ? ColumnsOf::lines : ColumnsOf::across,
                       .b = {g.b.data, columns ? g.b.col_stride : g.b.row_stride, g.b.step, nullptr},
                       .bias = g.bias,
                       .c = g.c,
                       .c_row_stride = g.c_row_stride,
                       .c_step = g.a.rows * g.c_row_stride,
                       .dtype = g.dtype,
                       .c_dtype = g.c_dtype,
                       .after = g.after,
                       .packed_b = g.packed_b});
}

static void prepack(const PrepackArgs& a) {
  const int64_t n = a.weight.size(0), k = a.weight.size(1);
  if (!in_pairs(a.weight.dtype())) return;
  a.packed = Tensor::empty({pair_panel_numbers(k, n)}, a.weight.dtype());
  pair_panels_kernel(Device::cpu, {.lines = a.weight.raw(), .k = k, .n = n, .to = a.packed.raw()});
}

static const Register r1{gemm_kernel, Device::cpu, gemm};
static const Register r2{prepack_kernel, Device::cpu, prepack};

}  // namespace deem
