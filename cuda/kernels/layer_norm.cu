#include "ops/layer_norm.h"

#include "cuda/row_norm.cuh"
#include "cuda/slot.h"

namespace deem::cuda {

static void forward(const LayerNormArgs& a) {
  RowNorm k{};
  k.x = a.x;
  k.w = a.w;
  k.b = a.b;
  k.y = a.y;
  k.mean = a.mean;
  k.rstd = a.rstd;
  k.rows = a.rows;
  k.eps = a.eps;
  launch_row_norm<true>("layer_norm", k, a.cols, a.dtype, a.param_dtype);
}

static void backward(const LayerNormBackwardArgs& a) {
  RowNormBackward k{};
  k.dy = a.dy;
  k.x = a.x;
  k.w = a.w;
  k.mean = a.mean;
  k.rstd = a.rstd;
  k.dx = a.dx;
  k.rows = a.rows;
  launch_row_norm_backward<true>("layer_norm_backward", k, a.cols, a.dw, a.db, a.dtype, a.param_dtype);
}

DEEM_CUDA_KERNEL("layer_norm", forward);
DEEM_CUDA_KERNEL("layer_norm_backward", backward);

}  // namespace deem::cuda
