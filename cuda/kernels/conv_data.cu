#include "cuda/kernels/conv_product.cuh"
#include "cuda/slot.h"

namespace deem::cuda {

static void conv_data(const ConvDataArgs& a) {
  using namespace conv;
  const ConvSizes& s = a.s;
  check_sizes(s);
  if (s.n == 0) return;
  if (s.groups > 1) return depthwise_data(a);
  dispatch(s.dtype, "conv2d_backward_data", [&]<class T>(T) {
    const int64_t rows = (s.h + s.stride - 1) / s.stride, columns = (s.w + s.stride - 1) / s.stride;
    const int64_t residues_h = std::min(s.stride, s.h), residues_w = std::min(s.stride, s.w);
    Data<T> p{};
    p.a.map = map_of<T>(a.dy, s.n, s.oh, s.ow, s.out, rows, columns);
    p.a.grain = grain_of<T>(a.dy, s.out);
    p.b = {.data = static_cast<const T*>(a.weight),
           .out = int(s.out),
           .kh = int(s.kh),
           .kw = int(s.kw),
           .in = int(s.in),
           .step = int(s.stride),
           .grain = grain_of<T>(a.weight, s.in),
           .per_tap = Divisor(s.out)};
    p.out = output_of<T>(a.dx, nullptr, s.n * s.h * s.w, s.in);
    p.h = int(s.h), p.w = int(s.w), p.stride = int(s.stride);
    p.pad_top = int(s.pad_top), p.pad_left = int(s.pad_left);
    p.residues_w = int(residues_w);
    p.few_taps = Divisor(std::max<int64_t>(s.kw / s.stride, 1));
    p.one_more_tap = Divisor(s.kw / s.stride + 1);
    const int64_t taps = std::max<int64_t>(s.kh / s.stride, 1) * std::max<int64_t>(s.kw / s.stride, 1);
    run_product(p, {s.n * rows * columns, s.in, taps * s.out, residues_h * residues_w});
  });
}

DEEM_CUDA_KERNEL("conv2d_backward_data", conv_data);

}  // namespace deem::cuda
