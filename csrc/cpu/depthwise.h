// Convolutions of each channel with taps of its own (groups == in == out), summed in f32 over rows, then columns, of the taps.
#pragma once
#include "ops/conv.h"

namespace deem {

// y = x * weight + bias. With `back`, taps count from the end: the gradient of the data.
struct DepthwiseArgs {
  ConvSizes s;
  bool back;
  const void *x, *weight, *bias;  // bias or null
  void* y;
};
extern Kernel<DepthwiseArgs> depthwise_kernel;

}  // namespace deem
