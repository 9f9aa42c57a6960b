#include "ops/rms_norm.h"

#include "cuda/row_norm.cuh"
#include "cuda/slot.h"

namespace deem::cuda {

static void forward(const RmsNormArgs& a) {
  RowNorm k{};
  k.x = a.x;
  k.w = a.w;
  k.y = a.y;
  k.rstd = a.rstd;
  k.rows = a.rows;
  k.eps = a.eps;
  launch_row_norm<false>("rms_norm", k, a.cols, a.dtype, a.param_dtype);
}

static void backward(const RmsNormBackwardArgs& a) {
  RowNormBackward k{};
  k.dy = a.dy;
  k.x = a.x;
  k.w = a.w;
  k.rstd = a.rstd;
  k.dx = a.dx;
  k.rows = a.rows;
  launch_row_norm_backward<false>("rms_norm_backward", k, a.cols, a.dw, nullptr, a.dtype, a.param_dtype);
}

DEEM_CUDA_KERNEL("rms_norm", forward);
DEEM_CUDA_KERNEL("rms_norm_backward", backward);

}  // namespace deem::cuda
