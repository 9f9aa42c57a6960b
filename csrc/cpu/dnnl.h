// The only place that knows oneDNN, which convolves what our own kernels do not. Primitives are built once per problem and kept; a call
// sets pointers and executes.
// All calls come from the engine thread, which owns the OpenMP team.
#pragma once
#include <cstdint>

#include "core/tensor.h"

namespace deem::onednn {

// Convolutions over [N, H, W, C] with weights [O, KH, KW, I / groups].
struct ConvShape {
  int64_t n, h, w, in, out, kh, kw, oh, ow, stride, pad_top, pad_left, pad_bottom, pad_right, groups;
  DType dtype;
};
void conv_forward(const ConvShape& s, const void* x, const void* weight, const void* bias, void* y);
void conv_backward_data(const ConvShape& s, const void* dy, const void* weight, void* dx);
// dweight and dbias have the shape's dtype; dbias may be null.
void conv_backward_weights(const ConvShape& s, const void* x, const void* dy, void* dweight, void* dbias);

}  // namespace deem::onednn
