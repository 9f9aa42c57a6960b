#include "cuda/kernels/conv_product.cuh"
#include "cuda/slot.h"

namespace deem::cuda {

static void conv_forward(const ConvForwardArgs& a) {
  using namespace conv;
  const ConvSizes& s = a.s;
  check_sizes(s);
  if (s.n == 0) return;
  if (s.groups > 1) return depthwise_forward(a);
  dispatch(s.dtype, "conv2d", [&]<class T>(T) {
    Forward<T> p{};
    p.a.map = map_of<T>(a.x, s.n, s.h, s.w, s.in, s.oh, s.ow);
    p.a.map.step = int(s.stride), p.a.map.top = -int(s.pad_top), p.a.map.left = -int(s.pad_left);
    p.a.map.taps = int(s.kh * s.kw * s.in);
    p.a.map.per_tap_row = Divisor(s.kw);
    p.a.grain = grain_of<T>(a.x, s.in);
    p.b = {static_cast<const T*>(a.weight), int(s.out), int(s.kh * s.kw * s.in), grain_of<T>(a.weight, s.in)};
    p.out = output_of<T>(a.y, a.bias, s.n * s.oh * s.ow, s.out);
    run_product(p, {s.n * s.oh * s.ow, s.out, s.kh * s.kw * s.in});
  });
}

DEEM_CUDA_KERNEL("conv2d", conv_forward);

}  // namespace deem::cuda
