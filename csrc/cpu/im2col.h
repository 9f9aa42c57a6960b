// Convolutions as products with their patches written out. Of few pixels with large weights: those are read as they lie, where
// oneDNN's convolutions would first copy all of them into a layout of their own. Of few channels: the gradient of the picture is a product with
// all taps of a pixel, which fill the tiles that the channels alone would leave empty.
#pragma once
#include "ops/conv.h"

namespace deem {

// col[n, oy, ox, kh, kw, :] = the pixel of x under that tap, zeros outside.
struct Im2colArgs {
  ConvSizes s;
  const void* x;
  void* col;  // of x's dtype
};
extern Kernel<Im2colArgs> im2col_kernel;

// The transpose: dx = sums of col over the taps that read a pixel, in the order of the taps.
struct Col2imArgs {
  ConvSizes s;
  const float* col;
  void* dx;  // of the shape's dtype
};
extern Kernel<Col2imArgs> col2im_kernel;

}  // namespace deem
