#pragma once
#include "core/kernel.h"

namespace deem {

// Sizes of a convolution over [N, H, W, C] with weights [O, KH, KW, I / groups].
struct ConvSizes {
  int64_t n, h, w, in, out, kh, kw, oh, ow, stride, pad_top, pad_left, pad_bottom, pad_right, groups;
  DType dtype;
};
struct ConvForwardArgs {
  ConvSizes s;
  const void *x, *weight, *bias;  // bias or null
  void* y;
};
struct ConvDataArgs {
  ConvSizes s;
  const void *dy, *weight;
  void* dx;
};
struct ConvWeightsArgs {
  ConvSizes s;
  const void *x, *dy;
  void *dweight, *dbias;  // dbias or null
};
extern Kernel<ConvForwardArgs> conv_forward_kernel;
extern Kernel<ConvDataArgs> conv_data_kernel;
extern Kernel<ConvWeightsArgs> conv_weights_kernel;

// The weight gradient of a depthwise convolution (groups == in == out); dweight is f32 [C, KH, KW].
struct DepthwiseWeightsArgs {
  ConvSizes s;
  const void *x, *dy;
  float* dweight;
  float* scratch;  // [n * chunks, KH * KW, C] partial sums, one per image and chunk of rows
  int64_t chunks;
};
extern Kernel<DepthwiseWeightsArgs> depthwise_weights_kernel;

}  // namespace deem
