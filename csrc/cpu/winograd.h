// Convolutions of 3 x 3 with 4 multiplications a result and channel instead of 9, or 2.25, after Winograd. Results of a tile of 2 x 2 or 4 x 4
// share their sums: a number that is not finite makes NaN of all of them, and rounding is as of the largest number near. Products are of f32, or,
// in tiles of 2 x 2, of transformed numbers rounded to bf16 where numbers are bf16 and the machine multiplies those: beside exact
// products of the same numbers that adds about 2.4 times what rounding x alone to bf16 costs.
#pragma once
#include "cpu/wide.h"
#include "ops/conv.h"

namespace deem {

// What the number of input channels must be a multiple of.
inline int64_t winograd_channels(DType dtype) { return multiplies_short(dtype) ? 32 : 16; }

// y = x * weight + bias of stride 1 with any padding. With `back`, the weights are [in, 3, 3, out] and their taps count
// from the end: the gradient of the data.
struct WinogradArgs {
  ConvSizes s;
  int64_t side;  // of a tile of results: 2 or 4; 2 where products are of bf16
  bool back;
  const void *x, *weight, *bias;  // bias or null
  void* y;
};
extern Kernel<WinogradArgs> winograd_kernel;

// The gradient of the weights, of the same sizes.
struct WinogradWeightsArgs {
  ConvSizes s;
  int64_t side;
  const void *x, *dy;
  void* dweight;
};
extern Kernel<WinogradWeightsArgs> winograd_weights_kernel;

}  // namespace deem
