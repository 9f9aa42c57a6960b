#include "ops/conv.h"

#include "cpu/dnnl.h"

namespace deem {

static onednn::ConvShape shape_of(const ConvSizes& s) {
  return {s.n,  s.h,      s.w,       s.in,       s.out,        s.kh,        s.kw,     s.oh,
          s.ow, s.stride, s.pad_top, s.pad_left, s.pad_bottom, s.pad_right, s.groups, s.dtype};
}

static void forward(const ConvForwardArgs& a) { onednn::conv_forward(shape_of(a.s), a.x, a.weight, a.bias, a.y); }
static void data(const ConvDataArgs& a) { onednn::conv_backward_data(shape_of(a.s), a.dy, a.weight, a.dx); }
static void weights(const ConvWeightsArgs& a) {
  onednn::conv_backward_weights(shape_of(a.s), a.x, a.dy, a.dweight, a.dbias);
}

static const Register r1{conv_forward_kernel, Device::cpu, forward};
static const Register r2{conv_data_kernel, Device::cpu, data};
static const Register r3{conv_weights_kernel, Device::cpu, weights};

}  // namespace deem
