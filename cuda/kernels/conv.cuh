// What the files of convolutions share.
#pragma once
#include <algorithm>

#include "cuda/vec.cuh"
#include "ops/conv.h"

namespace deem::cuda::conv {

// Pixels of one image and elements of one filter are fewer: they are counted in 32 bits.
constexpr int64_t kMostMap = int64_t(1) << 30;

inline void check_sizes(const ConvSizes& s) {
  check<ShapeError>(
      s.h * s.w < kMostMap && s.oh * s.ow < kMostMap && s.kh * s.kw < kMostMap / std::max(s.in, s.out),
      "[conv2d] cuda takes images of fewer than 2^30 pixels and filters of fewer than 2^30 elements but got ", s.h,
      " x ", s.w, " and ", s.kh, " x ", s.kw, " for ", s.in, " -> ", s.out, " channels");
}

// Each channel by itself: groups == in == out > 1.
void depthwise_forward(const ConvForwardArgs& a);
void depthwise_data(const ConvDataArgs& a);
void depthwise_weights(const ConvSizes& s, const void* x, const void* dy, void* dweight, DType dweight_type);

}  // namespace deem::cuda::conv
