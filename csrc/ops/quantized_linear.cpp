// Linear layers whose weight lies in 8 or 4 bits (weight-only quantisation: x, y and sums are floats). Round to nearest; groups along the
// input axis. y = x weight^T + bias; dx = dy weight. The weight itself has no gradient.
#include "ops/quantized_linear.h"

#include <algorithm>
#include <numeric>

#include "ops.h"
#include "ops/device.h"
#include "ops/matmul.h"

namespace deem {

constinit Kernel<QuantizeArgs> quantize_kernel{"quantize"};
constinit Kernel<DequantizeArgs> dequantize_kernel{"dequantize"};
constinit Kernel<QuantizedGemvArgs> quantized_gemv_kernel{"quantized_gemv"};

// Floats of a weight that exist at a time beside its codes.
constexpr int64_t kTileNumbers = 1 << 20;

std::string QuantFormat::suffix() const { return str("int", bits, "g", group, symmetric ? "" : "a"); }

void QuantFormat::validate() const {
  check<ValueError>(bits == 8 || bits == 4, "[quantize] bits must be 8 or 4 but are ", bits);
  check<ValueError>(group == 32 || group == 64 || group == 128, "[quantize] group must be 32, 64 or 128 but is ",
                    group);
}

Tensor quantize(const Tensor& weight, int64_t bits, int64_t group, bool symmetric) {
  check<ShapeError>(weight.ndim() == 2, "[quantize] the weight must be [out, in] but has shape ", weight.shape());
  QuantFormat f{bits, group, symmetric, weight.size(1)};
  f.validate();
  int64_t rows = weight.size(0);
  Tensor w = contiguous(cast(weight.detach(), DType::f32));
  Device device = weight.device();
  if (weight.numel() == 0) return Tensor::zeros({rows, f.row_bytes()}, DType::u8, device);
  Tensor packed = Tensor::empty({rows, f.row_bytes()}, DType::u8, device),
         finite = Tensor::zeros({rows}, DType::u8, device);
  quantize_kernel(device, {w.data<float>(), packed.data<uint8_t>(), finite.data<uint8_t>(), rows, f});
  finite = on_host(finite);
  for (int64_t r = 0; r < rows; r++)
    check<ValueError>(finite.data<uint8_t>()[r], "[quantize] row ", r,
                      " holds numbers that are not finite or whose scale is beyond f16");
  return packed;
}

static QuantFormat format_of(const char* op, const Tensor& packed, int64_t cols, int64_t bits, int64_t group,
                             bool symmetric) {
  QuantFormat f{bits, group, symmetric, cols};
  f.validate();
  check<ValueError>(cols >= 0, "[", op, "] cols must not be negative but are ", cols);
  check<DTypeError>(packed.dtype() == DType::u8, "[", op, "] the packed weight must be u8 but is ", packed.dtype());
  check<ShapeError>(packed.ndim() == 2 && packed.size(1) == f.row_bytes(), "[", op, "] a weight of ", cols,
                    " columns as ", f.suffix(), " must be [out, ", f.row_bytes(), "] but has shape ", packed.shape());
  return f;
}

Tensor dequantize(const Tensor& packed_in, int64_t cols, int64_t bits, int64_t group, bool symmetric) {
  QuantFormat f = format_of("dequantize", packed_in, cols, bits, group, symmetric);
  Tensor packed = contiguous(packed_in), out = Tensor::empty({packed.size(0), cols}, DType::f32, packed.device());
  if (out.numel() == 0) return out;
  dequantize_kernel(packed.device(), {packed.data<uint8_t>(), out.raw(), 0, packed.size(0), 0, cols, f, DType::f32});
  return out;
}

// One tile of the weight after another becomes floats and is multiplied: of outputs forward, of inputs backward. x is f32 or bf16.
static Tensor tiled(const Tensor& x, const QuantizedWeight& w, const MaybeTensor& bias, bool backward) {
  const QuantFormat& f = w.format;
  int64_t out = w.packed.size(0), m = x.size(0), n = backward ? f.cols : out, k = backward ? out : f.cols;
  Tensor y = Tensor::empty({m, n}, x.dtype(), x.device());
  int64_t step = std::clamp<int64_t>(kTileNumbers / k / 128 * 128, 128, std::max<int64_t>(n, 128));
  Tensor tile = Tensor::empty({std::min(step, n) * k}, x.dtype(), x.device());
  for (int64_t at = 0; at < n; at += step) {
    int64_t count = std::min(step, n - at);
    DequantizeArgs rows{w.packed.data<uint8_t>(), tile.raw(), at, count, 0, k, f, x.dtype()};
    DequantizeArgs columns{w.packed.data<uint8_t>(), tile.raw(), 0, k, at, count, f, x.dtype()};
    dequantize_kernel(x.device(), backward ? columns : rows);
    GemmOperand b =
        backward ? GemmOperand{tile.raw(), k, count, count, 1, 0} : GemmOperand{tile.raw(), k, count, 1, k, 0};
    size_t width = size_of(x.dtype());
    gemm_kernel(x.device(), {.batch = 1,
                             .a = {x.raw(), m, k, k, 1, 0},
                             .b = b,
                             .bias = bias ? static_cast<char*>(bias->raw()) + size_t(at) * width : nullptr,
                             .c = static_cast<char*>(y.raw()) + size_t(at) * width,
                             .c_row_stride = n,
                             .dtype = x.dtype(),
                             .c_dtype = x.dtype()});
  }
  return y;
}

// rows [m, cols] of any floating dtype -> [m, out] of the same
static Tensor forward_rows(const Tensor& x, const QuantizedWeight& w, const MaybeTensor& bias) {
  int64_t m = x.size(0), out = w.packed.size(0);
  Device device = x.device();
  if (m * out == 0) return Tensor::zeros({m, out}, x.dtype(), device);
  if (w.format.cols == 0)
    return bias ? contiguous(broadcast_to(bias->detach(), {m, out})) : Tensor::zeros({m, out}, x.dtype(), device);
  if (m > kMostGemvRows) {
    if (x.dtype() != DType::f16) return tiled(x, w, bias, false);
    MaybeTensor wide = bias ? MaybeTensor(cast(bias->detach(), DType::f32)) : bias;
    return cast(tiled(cast(x, DType::f32), w, wide, false), x.dtype());
  }
  Tensor wide = cast(x, DType::f32), y = Tensor::empty({m, out}, DType::f32, device);
  Tensor b = bias ? cast(bias->detach(), DType::f32) : Tensor();
  Tensor scratch = device == Device::cpu ? Tensor::empty({m, gemv_scratch_bytes(w.format)}, DType::u8) : Tensor();
  quantized_gemv_kernel(device, {.x = wide.data<float>(),
                                 .packed = w.packed.data<uint8_t>(),
                                 .bias = b ? b.data<float>() : nullptr,
                                 .y = y.data<float>(),
                                 .scratch = scratch ? scratch.raw() : nullptr,
                                 .m = m,
                                 .rows = out,
                                 .format = w.format,
                                 .short_x = x.dtype() == DType::bf16});
  return cast(y, x.dtype());
}

static Tensor backward_rows(const Tensor& dy, const QuantizedWeight& w) {
  if (dy.size(0) * w.format.cols * dy.size(1) == 0)
    return Tensor::zeros({dy.size(0), w.format.cols}, dy.dtype(), dy.device());
  if (dy.dtype() != DType::f16) return tiled(dy, w, {}, true);
  return cast(tiled(cast(dy, DType::f32), w, {}, true), dy.dtype());
}

Tensor quantized_linear(const Tensor& x_in, const QuantizedWeight& w, const MaybeTensor& bias) {
  int64_t in = w.format.cols, out = w.packed.size(0);
  check<DTypeError>(is_float(x_in.dtype()), "[quantized_linear] x must be floating but is ", x_in.dtype());
  check<ShapeError>(x_in.ndim() >= 1 && x_in.size(-1) == in, "[quantized_linear] the last axis of x must be ", in,
                    " but x has shape ", x_in.shape());
  if (bias) {
    check<ShapeError>(bias->shape() == Shape{out}, "[quantized_linear] bias must be [", out, "] but has shape ",
                      bias->shape());
    check<DTypeError>(bias->dtype() == x_in.dtype(), "[quantized_linear] bias must be ", x_in.dtype(), " but is ",
                      bias->dtype());
  }
  check_same_device("quantized_linear", {x_in, w.packed, bias});
  Tensor x = contiguous(x_in);
  Shape shape = x.shape();
  int64_t rows = std::accumulate(shape.begin(), shape.end() - 1, int64_t(1), std::multiplies<>());
  shape[shape.size() - 1] = out;
  auto flat = [](const Tensor& t, int64_t r, int64_t c) { return t.view({r, c}, {c, 1}, 0); };
  MaybeTensor b = bias ? MaybeTensor(contiguous(*bias)) : bias;
  Tensor y = flat(forward_rows(flat(x, rows, in), w, b), rows, out).view(shape, shape.contiguous_strides(), 0);
  Shape x_shape = x.shape();
  return record("quantized_linear", y, {x, b ? *b : Tensor()}, [=](const Tensor& dy, Needs needs) -> Tensors {
    Tensor dx, db;
    if (needs[0]) dx = backward_rows(flat(dy, rows, out), w).view(x_shape, x_shape.contiguous_strides(), 0);
    if (needs[1]) {
      db = Tensor::empty({out}, dy.dtype(), dy.device());
      column_sum_kernel(dy.device(), {dy.raw(), db.raw(), rows, out, dy.dtype()});
    }
    return {dx, db};
  });
}

Tensor quantized_linear(const Tensor& x, const Tensor& packed, int64_t bits, int64_t group, bool symmetric,
                        const MaybeTensor& bias) {
  check<ShapeError>(x.ndim() >= 1, "[quantized_linear] x needs an axis");
  return quantized_linear(x,
                          QuantizedWeight{contiguous(packed).to(x.device()),
                                          format_of("quantized_linear", packed, x.size(-1), bits, group, symmetric)},
                          bias);
}

}  // namespace deem
