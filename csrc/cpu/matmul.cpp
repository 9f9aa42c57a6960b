#include "ops/matmul.h"

#include "cpu/dnnl.h"

namespace deem {

static void gemm(const GemmArgs& a) {
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

static const Register r{gemm_kernel, Device::cpu, gemm};

}  // namespace deem
