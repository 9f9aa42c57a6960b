// y = f(x) and y = f(a, b), element by element; the formulas are in the tables of elementwise.h.
#include "ops/elementwise.h"

#include "ops.h"
#include "ops/reduce.h"

namespace deem {

constinit Kernel<UnaryArgs> unary_kernel{"unary"};
constinit Kernel<UnaryBackwardArgs> unary_backward_kernel{"unary_backward"};
constinit Kernel<BinaryArgs> binary_kernel{"binary"};
constinit Kernel<WhereArgs> where_kernel{"where"};
constinit Kernel<CastArgs> cast_kernel{"cast"};

// ---- one input ----------------------------------------------------------------------------------------------------

struct UnaryRow {
  const char* name;
  Keeps keeps;
};
#define ROW(name, keeps, ...) {#name, Keeps::keeps},
static constexpr UnaryRow kUnary[] = {DEEM_UNARY_TABLE(ROW)};
#undef ROW

// dx = dy * f'(x)
static Tensor unary(Unary op, const Tensor& x_in, double s = 0, double t = 0) {
  const UnaryRow& row = kUnary[int(op)];
  check<DTypeError>(is_float(x_in.dtype()), "[", row.name, "] x must be floating but is ", x_in.dtype());
  Tensor x = contiguous(x_in), y = Tensor::empty(x.shape(), x.dtype(), x.device());
  unary_kernel(x.device(), {op, x.raw(), y.raw(), x.numel(), float(s), float(t), x.dtype()});
  if (!any_tracked({x})) return record(row.name, y, {}, nullptr);
  // y itself would hold the node that holds y.
  Tensor kept = row.keeps == Keeps::input ? x.detach() : row.keeps == Keeps::output ? y.detach() : Tensor();
  return record(row.name, y, {x}, [=](const Tensor& dy, Needs) {
    if (op == Unary::add_scalar) return Tensors{dy};
    Tensor dx = Tensor::empty(dy.shape(), dy.dtype(), dy.device());
    unary_backward_kernel(
        dy.device(), {op, dy.raw(), kept ? kept.raw() : nullptr, dx.raw(), dy.numel(), float(s), float(t), dy.dtype()});
    return Tensors{dx};
  });
}

Tensor add_scalar(const Tensor& x, double s) { return unary(Unary::add_scalar, x, s); }
Tensor mul_scalar(const Tensor& x, double s) { return unary(Unary::mul_scalar, x, s); }
Tensor neg(const Tensor& x) { return unary(Unary::neg, x); }
Tensor exp(const Tensor& x) { return unary(Unary::exp, x); }
Tensor log(const Tensor& x) { return unary(Unary::log, x); }
Tensor sqrt(const Tensor& x) { return unary(Unary::sqrt, x); }
Tensor square(const Tensor& x) { return unary(Unary::square, x); }
Tensor abs(const Tensor& x) { return unary(Unary::abs, x); }
Tensor tanh(const Tensor& x) { return unary(Unary::tanh, x); }
Tensor sigmoid(const Tensor& x) { return unary(Unary::sigmoid, x); }
Tensor relu(const Tensor& x) { return unary(Unary::relu, x); }
Tensor silu(const Tensor& x) { return unary(Unary::silu, x); }
Tensor gelu(const Tensor& x) { return unary(Unary::gelu, x); }
Tensor gelu_tanh(const Tensor& x) { return unary(Unary::gelu_tanh, x); }
Tensor quick_gelu(const Tensor& x) { return unary(Unary::quick_gelu, x); }

Tensor clamp(const Tensor& x, double low, double high) {
  check<ValueError>(low <= high, "[clamp] low must not be above high but got ", low, " and ", high);
  return unary(Unary::clamp, x, low, high);
}

// ---- two inputs ---------------------------------------------------------------------------------------------------

// The kernels want innermost strides of 0 or 1: broadcast views and rows pass as they are, anything else is copied.
static Tensor usable_rows(const Tensor& x) {
  if (x.is_contiguous()) return x;
  for (int i = x.ndim() - 1; i >= 0; i--)
    if (x.shape()[i] != 1) return x.strides()[i] <= 1 ? x : contiguous(x);
  return x;
}

static Tensor binary(Binary op, const char* name, const Tensor& a_in, const Tensor& b_in) {
  check<DTypeError>(a_in.dtype() == b_in.dtype(), "[", name, "] dtypes must be equal but are ", a_in.dtype(), " and ",
                    b_in.dtype());
  check<DTypeError>(is_float(a_in.dtype()) || (a_in.dtype() == DType::i64 && op != Binary::div), "[", name,
                    "] does not take ", a_in.dtype());
  check<DeviceError>(a_in.device() == b_in.device(), "[", name, "] tensors are on ", name_of(a_in.device()), " and ",
                     name_of(b_in.device()));
  Shape shape = a_in.shape() == b_in.shape() ? a_in.shape() : broadcast_shapes(name, a_in.shape(), b_in.shape());
  Tensor a = usable_rows(a_in.detach()), b = usable_rows(b_in.detach()),
         y = Tensor::empty(shape, a.dtype(), a.device());
  if (y.numel() == 0) return y;
  binary_kernel(a.device(), {op, y.raw(), a.raw(), b.raw(),
                             coalesce<3>(shape, {y.strides(), broadcast_strides(a.shape(), a.strides(), shape),
                                                 broadcast_strides(b.shape(), b.strides(), shape)}),
                             a.dtype()});
  return y;
}

Tensor add(const Tensor& a, const Tensor& b) {
  Tensor y = binary(Binary::add, "add", a, b);
  return record("add", y, {a, b}, [sa = a.shape(), sb = b.shape()](const Tensor& dy, Needs needs) {
    return Tensors{needs[0] ? sum_to(dy, sa) : Tensor(), needs[1] ? sum_to(dy, sb) : Tensor()};
  });
}

Tensor sub(const Tensor& a, const Tensor& b) {
  Tensor y = binary(Binary::sub, "sub", a, b);
  return record("sub", y, {a, b}, [sa = a.shape(), sb = b.shape()](const Tensor& dy, Needs needs) {
    return Tensors{needs[0] ? sum_to(dy, sa) : Tensor(), needs[1] ? neg(sum_to(dy, sb)) : Tensor()};
  });
}

Tensor mul(const Tensor& a, const Tensor& b) {
  Tensor y = binary(Binary::mul, "mul", a, b);
  return record("mul", y, {a, b}, [a = a.detach(), b = b.detach()](const Tensor& dy, Needs needs) {
    return Tensors{needs[0] ? sum_products_to(dy, b, a.shape()) : Tensor(),
                   needs[1] ? sum_products_to(dy, a, b.shape()) : Tensor()};
  });
}

// da = dy / b, db = -(dy / b) * (a / b)
Tensor div(const Tensor& a, const Tensor& b) {
  Tensor y = binary(Binary::div, "div", a, b);
  return record("div", y, {a, b}, [sa = a.shape(), b = b.detach(), y = y.detach()](const Tensor& dy, Needs needs) {
    Tensor da = div(dy, b);
    return Tensors{needs[0] ? sum_to(da, sa) : Tensor(), needs[1] ? neg(sum_products_to(da, y, b.shape())) : Tensor()};
  });
}

void add_(const Tensor& sum, const Tensor& x_in) {
  check<ShapeError>(sum.shape() == x_in.shape(), "[add_] shapes must be equal but are ", sum.shape(), " and ",
                    x_in.shape());
  check<ShapeError>(sum.is_contiguous(), "[add_] the sum must be contiguous");
  check<DTypeError>(sum.dtype() == x_in.dtype() && (is_float(sum.dtype()) || sum.dtype() == DType::i64),
                    "[add_] cannot add ", x_in.dtype(), " to ", sum.dtype());
  check<DeviceError>(sum.device() == x_in.device(), "[add_] tensors are on ", name_of(sum.device()), " and ",
                     name_of(x_in.device()));
  if (sum.numel() == 0) return;
  Tensor x = usable_rows(x_in.detach());
  binary_kernel(
      sum.device(),
      {Binary::add, sum.raw(), sum.raw(), x.raw(),
       coalesce<3>(sum.shape(), {sum.shape().contiguous_strides(), sum.shape().contiguous_strides(), x.strides()}),
       sum.dtype()});
}

// ---- where, cast --------------------------------------------------------------------------------------------------

// da = mask ? dy : 0, db = mask ? 0 : dy
Tensor where(const Tensor& mask_in, const Tensor& a_in, const Tensor& b_in) {
  check<DTypeError>(mask_in.dtype() == DType::u8, "[where] mask must be u8 but is ", mask_in.dtype());
  check<DTypeError>(a_in.dtype() == b_in.dtype(), "[where] dtypes must be equal but are ", a_in.dtype(), " and ",
                    b_in.dtype());
  Device device = check_same_device("where", {a_in, b_in});
  Shape shape = broadcast_shapes("where", broadcast_shapes("where", mask_in.shape(), a_in.shape()), b_in.shape());
  Tensor mask = usable_rows(mask_in.detach().to(device)), a = usable_rows(a_in.detach()),
         b = usable_rows(b_in.detach()), y = Tensor::empty(shape, a.dtype(), device);
  auto strides = [&](const Tensor& t) { return broadcast_strides(t.shape(), t.strides(), shape); };
  if (y.numel() > 0)
    where_kernel(a.device(), {y.raw(), mask.data<uint8_t>(), a.raw(), b.raw(),
                              coalesce<4>(shape, {y.strides(), strides(mask), strides(a), strides(b)}),
                              int64_t(size_of(a.dtype()))});
  return record("where", y, {a_in, b_in}, [mask, sa = a.shape(), sb = b.shape()](const Tensor& dy, Needs needs) {
    Tensor zero = Tensor::zeros({}, dy.dtype(), dy.device());
    return Tensors{needs[0] ? sum_to(where(mask, dy, zero), sa) : Tensor(),
                   needs[1] ? sum_to(where(mask, zero, dy), sb) : Tensor()};
  });
}

// Floating numbers are cut towards zero and clamped to the range of integers, NaN becomes 0; integers are clamped too.
Tensor cast(const Tensor& x_in, DType to) {
  if (x_in.dtype() == to) return x_in;
  Tensor x = contiguous(x_in), y = Tensor::empty(x.shape(), to, x.device());
  cast_kernel(x.device(), {x.raw(), y.raw(), x.numel(), x.dtype(), to});
  if (!is_float(x.dtype()) || !is_float(to)) return no_gradient("cast", y, {x});
  return record("cast", y, {x}, [from = x.dtype()](const Tensor& dy, Needs) { return Tensors{cast(dy, from)}; });
}

}  // namespace deem
