// Convolutions of 3 x 3 in f32 with 4 multiplications a result and channel instead of 9, after Winograd. Results of a tile of 2 x 2 share
// their sums: a number that is not finite makes NaN of all four, and rounding is as of the largest number near.
#pragma once
#include "ops/conv.h"

namespace deem {

// y = x * weight + bias of stride 1 with any padding; in a multiple of 16. With `back`, the weights are [in, 3, 3, out] and their taps count
// from the end: the gradient of the data.
struct WinogradArgs {
  ConvSizes s;
  bool back;
  const void *x, *weight, *bias;  // bias or null
  void* y;
};
extern Kernel<WinogradArgs> winograd_kernel;

// The gradient of the weights, of the same sizes.
struct WinogradWeightsArgs {
  ConvSizes s;
  const void *x, *dy;
  void* dweight;
};
extern Kernel<WinogradWeightsArgs> winograd_weights_kernel;

}  // namespace deem
