// Matrix products. matmul: c = a b, batched over leading axes. linear: y = act(x weight^T + bias). add_linear: r + (x weight^T + bias) scale.
#include "ops/matmul.h"

#include <algorithm>
#include <numeric>

#include "ops.h"
#include "ops/device.h"
#include "ops/quantized_linear.h"
#include "ops/view.h"

namespace deem {

constinit Kernel<GemmArgs> gemm_kernel{"gemm"};
constinit Kernel<PrepackArgs> prepack_kernel{"prepack"};
constinit Kernel<FewRowsArgs> few_rows_kernel{"few_rows"};
constinit Kernel<ColumnSumArgs> column_sum_kernel{"column_sum"};

Activation activation_from_name(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  if (name == "quick_gelu") return Activation::quick_gelu;
  throw ConfigError("unknown activation '" + name + "', known are none, relu, gelu, gelu_tanh, silu, quick_gelu");
}

static Tensor activate(const Tensor& x, Activation act) {
  switch (act) {
    case Activation::none: return x;
    case Activation::relu: return relu(x);
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::silu: return silu(x);
    case Activation::quick_gelu: return quick_gelu(x);
  }
  return x;
}

static void check_product_dtypes(const char* op, const Tensor& a, const Tensor& b) {
  check<DTypeError>(is_float(a.dtype()), "[", op, "] operands must be floating but the first is ", a.dtype());
  check<DTypeError>(a.dtype() == b.dtype(), "[", op, "] operands must share a dtype but are ", a.dtype(), " and ",
                    b.dtype());
  check_same_device(op, {a, b});
}

// A contiguous [batch, r, c] operand as it lies, or transposed by swapping its strides.
static GemmOperand operand(const Tensor& t, int64_t rows, int64_t cols, bool transposed, bool shared) {
  GemmOperand o{t.raw(), rows, cols, cols, 1, shared ? 0 : rows * cols};
  if (transposed) o = {t.raw(), cols, rows, 1, cols, shared ? 0 : rows * cols};
  return o;
}

// c [batch, M, N] from contiguous operands; either may be stored transposed. K == 0 gives zeros.
static void product(const Tensor& a, bool ta, const Tensor& b, bool tb, const MaybeTensor& bias, const Tensor& c,
                    int64_t batch, int64_t m, int64_t k, int64_t n, GemmAfter* after = nullptr) {
  if (batch * m * n == 0) return;
  if (k == 0) {
    copy_into(c, broadcast_to(Tensor::zeros({}, c.dtype(), c.device()), c.shape()));
    if (bias) add_(c, contiguous(broadcast_to(bias->detach(), c.shape())));
    return;
  }
  // A CPU keeps small weights in its caches; elsewhere every weight comes from memory.
  bool on_cpu = c.device() == Device::cpu;
  if (batch == 1 && !ta && tb && m <= kFewRows && (!on_cpu || n * k >= kManyWeights)) {
    Tensor scratch = on_cpu ? Tensor::empty({m, k}) : Tensor();
    few_rows_kernel(c.device(), {.x = a.raw(),
                                 .weight = b.raw(),
                                 .bias = bias ? bias->raw() : nullptr,
                                 .y = c.raw(),
                                 .scratch = scratch ? scratch.data<float>() : nullptr,
                                 .m = m,
                                 .n = n,
                                 .k = k,
                                 .dtype = b.dtype(),
                                 .y_dtype = c.dtype()});
    return;
  }
  gemm_kernel(c.device(), {.batch = batch,
                           .a = operand(a, ta ? k : m, ta ? m : k, ta, false),
                           .b = operand(b, tb ? n : k, tb ? k : n, tb, false),
                           .bias = bias ? bias->raw() : nullptr,
                           .c = c.raw(),
                           .c_row_stride = n,
                           .dtype = a.dtype(),
                           .c_dtype = c.dtype(),
                           .packed_b = batch == 1 && tb && b.impl()->packed ? Tensor(b.impl()->packed).raw() : nullptr,
                           .after = after});
}

bool prepack(const Tensor& weight) {
  if (weight.impl()->quantized || weight.device() != Device::cpu) return false;
  check<ShapeError>(weight.ndim() == 2 && weight.is_contiguous(),
                    "[prepack] the weight must be contiguous [out, in] but has shape ", weight.shape());
  if (weight.impl()->packed) return true;
  Tensor packed;
  if (weight.numel() > 0) prepack_kernel(Device::cpu, {weight.detach(), packed});
  weight.impl()->packed = packed.impl_ptr();
  return bool(packed);
}

// dx = dy W, dW = dy^T x, db = column sums of dy.
static Tensor linear_product(const Tensor& x_in, const Tensor& weight_in, const MaybeTensor& bias,
                             GemmAfter* after = nullptr) {
  Tensor x = contiguous(x_in), weight = contiguous(weight_in);
  int64_t in = weight.size(1), out = weight.size(0);
  Shape shape = x.shape();
  int64_t rows = std::accumulate(shape.begin(), shape.end() - 1, int64_t(1), std::multiplies<>());
  shape[shape.size() - 1] = out;
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  product(x, false, weight, true, bias, y, 1, rows, in, out, after);
  return record("linear", y, {x, weight, bias ? *bias : Tensor()}, [=](const Tensor& dy, Needs needs) -> Tensors {
    Tensor dx, dw, db;
    if (needs[0]) {
      dx = Tensor::empty(x.shape(), x.dtype(), x.device());
      product(dy, false, weight, false, {}, dx, 1, rows, out, in);
    }
    if (needs[1]) {
      dw = Tensor::empty(weight.shape(), weight.dtype(), x.device());
      product(dy, true, x, false, {}, dw, 1, out, rows, in);
    }
    if (needs[2]) {
      db = Tensor::empty({out}, dy.dtype(), dy.device());
      column_sum_kernel(dy.device(), {dy.raw(), db.raw(), rows, out, dy.dtype()});
    }
    return {dx, dw, db};
  });
}

static void check_linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  check_product_dtypes("linear", x, weight);
  check<ShapeError>(weight.ndim() == 2, "[linear] weight must be [out, in] but has shape ", weight.shape());
  check<ShapeError>(x.ndim() >= 1 && x.size(-1) == weight.size(1), "[linear] the last axis of x must be ",
                    weight.size(1), " but x has shape ", x.shape());
  if (bias) {
    check<ShapeError>(bias->shape() == Shape{weight.size(0)}, "[linear] bias must be [", weight.size(0),
                      "] but has shape ", bias->shape());
    check<DTypeError>(bias->dtype() == x.dtype(), "[linear] bias must be ", x.dtype(), " but is ", bias->dtype());
  }
}

Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, Activation act) {
  if (weight.impl()->quantized) return activate(quantized_linear(x, *weight.impl()->quantized, bias), act);
  check_linear(x, weight, bias);
  return activate(linear_product(x, weight, bias ? MaybeTensor(contiguous(*bias)) : bias), act);
}

static void check_added(const Tensor& residual, const Shape& shape, DType dtype, const MaybeTensor& scale) {
  check<ShapeError>(residual.shape() == shape, "[add_linear] residual must be ", shape, " but has shape ",
                    residual.shape());
  check<DTypeError>(residual.dtype() == dtype, "[add_linear] residual must be ", dtype, " but is ", residual.dtype());
  if (!scale) return;
  const Shape columns{shape[shape.size() - 1]};
  check<ShapeError>(scale->shape() == columns, "[add_linear] scale must be ", columns, " but has shape ",
                    scale->shape());
  check<DTypeError>(scale->dtype() == dtype, "[add_linear] scale must be ", dtype, " but is ", scale->dtype());
}

Tensor add_linear(const Tensor& residual, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                  const MaybeTensor& scale) {
  auto added = [&](const Tensor& y) { return add(residual, scale ? mul(y, *scale) : y); };
  const Tensor none;
  if (weight.impl()->quantized || any_tracked({residual, x, weight, bias ? *bias : none, scale ? *scale : none})) {
    const Tensor y = linear(x, weight, bias);
    check_added(residual, y.shape(), y.dtype(), scale);
    return added(y);
  }
  check_linear(x, weight, bias);
  Shape shape = x.shape();
  shape[shape.size() - 1] = weight.size(0);
  check_added(residual, shape, x.dtype(), scale);
  check_same_device("add_linear", {residual, x, scale});
  const Tensor kept = contiguous(residual), factors = scale ? contiguous(*scale) : none;
  GemmAfter after{factors ? factors.raw() : nullptr, kept.raw()};
  const Tensor y = linear_product(x, weight, bias ? MaybeTensor(contiguous(*bias)) : bias, &after);
  return after.done ? y : added(y);
}

Tensor matmul(const Tensor& a_in, const Tensor& b_in, bool transpose_a, bool transpose_b) {
  check_product_dtypes("matmul", a_in, b_in);
  check<ShapeError>(a_in.ndim() >= 2 && b_in.ndim() >= 2, "[matmul] operands need two axes but have shapes ",
                    a_in.shape(), " and ", b_in.shape());
  bool shared = b_in.ndim() == 2 && a_in.ndim() > 2;
  if (shared && !transpose_a) {  // one flat product over all rows
    Tensor w = transpose_b ? b_in : permute(b_in, {1, 0});
    check<ShapeError>(w.size(1) == a_in.size(-1), "[matmul] inner sizes of ", a_in.shape(), " and ", b_in.shape(),
                      " differ");
    return linear_product(a_in, w, {});
  }
  Tensor a = contiguous(a_in);
  Shape batch_shape(a.shape().begin(), a.shape().end() - 2);
  Tensor b = b_in;
  if (shared) {
    Shape wide = batch_shape;
    wide.push_back(b.size(0));
    wide.push_back(b.size(1));
    b = broadcast_to(b, wide);
  }
  b = contiguous(b);
  check<ShapeError>(a.ndim() == b.ndim() && batch_shape == Shape(b.shape().begin(), b.shape().end() - 2),
                    "[matmul] leading axes of ", a_in.shape(), " and ", b_in.shape(), " differ");
  int64_t m = a.size(transpose_a ? -1 : -2), k = a.size(transpose_a ? -2 : -1);
  int64_t n = b.size(transpose_b ? -2 : -1), kb = b.size(transpose_b ? -1 : -2);
  check<ShapeError>(k == kb, "[matmul] inner sizes of ", a_in.shape(), " and ", b_in.shape(), " differ: ", k, " and ",
                    kb);
  int64_t batch = batch_shape.numel();
  Shape shape = batch_shape;
  shape.push_back(m);
  shape.push_back(n);
  Tensor c = Tensor::empty(shape, a.dtype(), a.device());
  product(a, transpose_a, b, transpose_b, {}, c, batch, m, k, n);
  return record("matmul", c, {a, b}, [=](const Tensor& dc, Needs needs) -> Tensors {
    // With op(a) op(b) = c: d op(a) = dc op(b)^T, d op(b) = op(a)^T dc; a stored transposed takes the transpose of that.
    Tensor da, db;
    if (needs[0]) {
      da = Tensor::empty(a.shape(), a.dtype(), a.device());
      if (!transpose_a) product(dc, false, b, !transpose_b, {}, da, batch, m, n, k);
      else product(b, transpose_b, dc, true, {}, da, batch, k, n, m);
    }
    if (needs[1]) {
      db = Tensor::empty(b.shape(), b.dtype(), b.device());
      if (!transpose_b) product(a, !transpose_a, dc, false, {}, db, batch, k, m, n);
      else product(dc, true, a, transpose_a, {}, db, batch, n, m, k);
    }
    return {da, db};
  });
}

}  // namespace deem
