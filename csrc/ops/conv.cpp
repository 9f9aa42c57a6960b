// 2-D convolution over feature maps [N, H, W, C]: y[n, i, j, o] = b[o] + sum over kh, kw, c of
// x[n, i * stride + kh - pad_top, j * stride + kw - pad_left, c] * weight[o, kh, kw, c]; zeros outside.
#include "ops/conv.h"

#include <algorithm>

#include "ops.h"
#include "ops/device.h"
#include "ops/matmul.h"

namespace deem {

constinit Kernel<ConvForwardArgs> conv_forward_kernel{"conv2d"};
constinit Kernel<ConvDataArgs> conv_data_kernel{"conv2d_backward_data"};
constinit Kernel<ConvWeightsArgs> conv_weights_kernel{"conv2d_backward_weights"};
constinit Kernel<DepthwiseWeightsArgs> depthwise_weights_kernel{"depthwise_backward_weights"};

static ConvSizes check_conv(const Tensor& x, const Tensor& w, const MaybeTensor& bias, const Conv2dOptions& o) {
  check<ShapeError>(x.ndim() == 4, "[conv2d] x must be [N, H, W, C] but has shape ", x.shape());
  check<ShapeError>(w.ndim() == 4, "[conv2d] weight must be [O, KH, KW, I / groups] but has shape ", w.shape());
  check<DTypeError>(is_float(x.dtype()), "[conv2d] x must be floating but is ", x.dtype());
  check<DTypeError>(w.dtype() == x.dtype(), "[conv2d] weight must be ", x.dtype(), " but is ", w.dtype());
  check<ValueError>(o.stride >= 1 && o.stride <= 1 << 16, "[conv2d] stride must be at least 1 but is ", o.stride);
  for (int64_t p : {o.pad_left, o.pad_right, o.pad_top, o.pad_bottom})
    check<ValueError>(p >= 0 && p <= 1 << 16, "[conv2d] padding must not be negative but is ", p);
  check_same_device("conv2d", {x, w, bias});
  int64_t in = x.size(3), out = w.size(0);
  check<ValueError>(o.groups == 1 || (o.groups == in && in == out),
                    "[conv2d] groups must be 1 or the number of channels (depthwise) but is ", o.groups, " for ", in,
                    " -> ", out, " channels");
  check<ShapeError>(w.size(3) * o.groups == in, "[conv2d] weight of shape ", w.shape(), " does not fit ", in,
                    " channels in ", o.groups, " groups");
  if (bias) {
    check<ShapeError>(bias->shape() == Shape{out}, "[conv2d] bias must be [", out, "] but has shape ", bias->shape());
    check<DTypeError>(bias->dtype() == x.dtype(), "[conv2d] bias must be ", x.dtype(), " but is ", bias->dtype());
  }
  int64_t h = x.size(1) + o.pad_top + o.pad_bottom, width = x.size(2) + o.pad_left + o.pad_right;
  check<ShapeError>(w.size(1) >= 1 && w.size(2) >= 1 && h >= w.size(1) && width >= w.size(2), "[conv2d] a kernel of ",
                    w.size(1), " x ", w.size(2), " does not fit a padded map of ", h, " x ", width);
  return {x.size(0),
          x.size(1),
          x.size(2),
          in,
          out,
          w.size(1),
          w.size(2),
          (h - w.size(1)) / o.stride + 1,
          (width - w.size(2)) / o.stride + 1,
          o.stride,
          o.pad_top,
          o.pad_left,
          o.pad_bottom,
          o.pad_right,
          o.groups,
          x.dtype()};
}

static Tensor depthwise_weight_gradient(const ConvSizes& s, const Tensor& x, const Tensor& dy) {
  // Partial sums over chunks of rows: enough to keep the threads busy, and fixed by the sizes alone.
  int64_t chunks = std::clamp<int64_t>(16 / std::max<int64_t>(s.n, 1), 1, s.oh), taps = s.kh * s.kw;
  Tensor dw = Tensor::empty({s.in, s.kh, s.kw, 1}, DType::f32, x.device()),
         scratch = Tensor::empty({s.n * chunks, taps, s.in}, DType::f32, x.device());
  depthwise_weights_kernel(x.device(), {s, x.raw(), dy.raw(), dw.data<float>(), scratch.data<float>(), chunks});
  return dw;
}

static Tensor bias_gradient(const Tensor& dy) {
  Tensor db = Tensor::empty({dy.size(3)}, dy.dtype(), dy.device());
  column_sum_kernel(dy.device(),
                    {dy.raw(), db.raw(), dy.numel() / std::max<int64_t>(dy.size(3), 1), dy.size(3), dy.dtype()});
  return db;
}

Tensor conv2d(const Tensor& x_in, const Tensor& w_in, const MaybeTensor& bias_in, const Conv2dOptions& options) {
  ConvSizes s = check_conv(x_in, w_in, bias_in, options);
  MaybeTensor bias = bias_in ? MaybeTensor(contiguous(*bias_in)) : bias_in;
  bool padded = s.pad_top || s.pad_bottom || s.pad_left || s.pad_right;
  if (s.kh == 1 && s.kw == 1 && s.stride == 1 && !padded && s.groups == 1)
    return linear(x_in, reshape(w_in, {s.out, s.in}), bias);
  Tensor x = contiguous(x_in), w = contiguous(w_in);
  Tensor y = Tensor::empty({s.n, s.oh, s.ow, s.out}, x.dtype(), x.device());
  bool empty = s.n == 0 || s.in == 0 || s.out == 0;
  check<ShapeError>(!empty || s.n == 0, "[conv2d] needs at least one channel but got ", s.in, " -> ", s.out);
  if (!empty) conv_forward_kernel(x.device(), {s, x.raw(), w.raw(), bias ? bias->raw() : nullptr, y.raw()});
  return record("conv2d", y, {x, w, bias ? *bias : Tensor()}, [=](const Tensor& dy, Needs needs) -> Tensors {
    Tensor dx, dw, db;
    if (empty)
      return {needs[0] ? Tensor::zeros(x.shape(), x.dtype(), x.device()) : dx,
              needs[1] ? Tensor::zeros(w.shape(), w.dtype(), x.device()) : dw,
              needs[2] ? Tensor::zeros({s.out}, x.dtype(), x.device()) : db};
    if (needs[0]) {
      dx = Tensor::empty(x.shape(), x.dtype(), x.device());
      conv_data_kernel(x.device(), {s, dy.raw(), w.raw(), dx.raw()});
    }
    if (needs[1] && s.groups > 1) {
      dw = cast(depthwise_weight_gradient(s, x, dy), w.dtype());
    } else if (needs[1]) {
      dw = Tensor::empty(w.shape(), w.dtype(), x.device());
      conv_weights_kernel(x.device(), {s, x.raw(), dy.raw(), dw.raw(), nullptr});
    }
    if (needs[2]) db = bias_gradient(dy);
    return {dx, dw, db};
  });
}

}  // namespace deem
