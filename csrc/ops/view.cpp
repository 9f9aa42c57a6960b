// Operations that only move elements. Views share their input's storage; the others copy once.
#include "ops/view.h"

#include "ops.h"
#include "ops/device.h"
#include "ops/embedding.h"

namespace deem {

constinit Kernel<CopyArgs> copy_kernel{"copy"};
constinit Kernel<GatherRowsArgs> gather_rows_kernel{"gather_rows"};

void copy_into(const Tensor& to, const Tensor& x) {
  if (x.numel() == 0) return;
  copy_kernel(x.device(),
              {to.raw(), x.raw(), coalesce<2>(x.shape(), {to.strides(), x.strides()}), int64_t(size_of(x.dtype()))});
}

Tensor contiguous(const Tensor& x) {
  if (x.is_contiguous()) return x;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy_into(y, x);
  return record("contiguous", y, {x}, [](const Tensor& dy, Needs) { return Tensors{dy}; });
}

Tensor to_device(const Tensor& x, Device device) {
  Device from = x.device();
  if (from == device) return x;
  return record("to_device", x.to(device), {x},
                [from](const Tensor& dy, Needs) { return Tensors{to_device(dy, from)}; });
}

// ---- reshape ------------------------------------------------------------------------------------------------------

static Shape infer_shape(const Tensor& x, Shape shape) {
  int unknown = -1;
  for (int i = 0; i < shape.size(); i++) {
    check<ShapeError>(shape[i] >= -1, "[reshape] sizes must be at least 0, or -1 once, but got ", shape);
    if (shape[i] == -1) {
      check<ShapeError>(unknown < 0, "[reshape] only one size may be -1 but got ", shape);
      unknown = i;
      shape[i] = 1;
    }
  }
  int64_t known = shape.numel();
  if (unknown >= 0) {
    check<ShapeError>(known > 0 && x.numel() % known == 0, "[reshape] no size in place of -1 turns ", x.shape(),
                      " into ", shape);
    shape[unknown] = x.numel() / known;
  }
  check<ShapeError>(shape.numel() == x.numel(), "[reshape] cannot turn ", x.shape(), " into ", shape);
  return shape;
}

// Strides that show x as `shape` without moving anything, or false where there are none.
static bool view_strides(const Tensor& x, const Shape& shape, Shape& strides) {
  strides = shape.contiguous_strides();
  if (x.is_contiguous()) return true;
  Strided<1> from = coalesce<1>(x.shape(), {x.strides()});
  int d = from.ndim - 1;  // the axis of x being cut up, innermost first
  int64_t done = 1;       // how much of it is used
  for (int i = shape.size() - 1; i >= 0; i--) {
    if (shape[i] == 1) continue;
    if (done == from.shape[d]) {
      d--;
      done = 1;
    }
    if (from.shape[d] % (done * shape[i]) != 0) return false;
    strides[i] = from.strides[0][d] * done;
    done *= shape[i];
  }
  return true;
}

Tensor reshape(const Tensor& x, const Shape& asked) {
  Shape shape = infer_shape(x, asked), strides;
  if (shape == x.shape()) return x;
  if (!view_strides(x, shape, strides)) return reshape(contiguous(x), shape);
  return record("reshape", x.view(shape, strides, 0), {x},
                [from = x.shape()](const Tensor& dy, Needs) { return Tensors{reshape(dy, from)}; });
}

// ---- permute, slice, broadcast_to ---------------------------------------------------------------------------------

Tensor permute(const Tensor& x, const std::vector<int64_t>& axes) {
  check<ShapeError>(int64_t(axes.size()) == x.ndim(), "[permute] needs one axis a dimension of ", x.shape(),
                    " but got ", axes.size());
  Shape shape = x.shape(), strides = x.strides();
  std::vector<int64_t> back(axes.size(), -1);
  for (size_t i = 0; i < axes.size(); i++) {
    int a = normalize_axis("permute", axes[i], x.ndim());
    check<ShapeError>(back[a] < 0, "[permute] axis ", a, " is named twice");
    back[a] = int64_t(i);
    shape[int(i)] = x.shape()[a];
    strides[int(i)] = x.strides()[a];
  }
  return record("permute", x.view(shape, strides, 0), {x},
                [back](const Tensor& dy, Needs) { return Tensors{permute(dy, back)}; });
}

static Tensor part(const Tensor& x, int axis, int64_t begin, int64_t count) {
  Shape shape = x.shape();
  shape[axis] = count;
  return x.view(shape, x.strides(), begin * x.strides()[axis]);
}

Tensor slice(const Tensor& x, int64_t axis_in, int64_t begin_in, int64_t end_in) {
  int axis = normalize_axis("slice", axis_in, x.ndim());
  int64_t n = x.size(axis), begin = begin_in < 0 ? begin_in + n : begin_in, end = end_in < 0 ? end_in + n : end_in;
  check<IndexError>(0 <= begin && begin <= end && end <= n, "[slice] needs 0 <= begin <= end <= ", n, " on axis ", axis,
                    " but got ", begin_in, " and ", end_in);
  if (begin == 0 && end == n) return x;
  return record("slice", part(x, axis, begin, end - begin), {x},
                [from = x.shape(), axis, begin](const Tensor& dy, Needs) {
                  Tensor dx = Tensor::zeros(from, dy.dtype(), dy.device());
                  copy_into(part(dx, axis, begin, dy.size(axis)), dy);
                  return Tensors{dx};
                });
}

Tensor broadcast_to(const Tensor& x, const Shape& shape) {
  (void)shape.numel();  // throws on negative sizes and on overflow, which a view would not notice
  check<ShapeError>(broadcast_shapes("broadcast_to", x.shape(), shape) == shape, "[broadcast_to] ", x.shape(),
                    " does not broadcast to ", shape);
  if (shape == x.shape()) return x;
  return record("broadcast_to", x.view(shape, broadcast_strides(x.shape(), x.strides(), shape), 0), {x},
                [from = x.shape()](const Tensor& dy, Needs) { return Tensors{sum_to(dy, from)}; });
}

// ---- cat, stack, pad_rows -----------------------------------------------------------------------------------------

static Shape check_cat(const Tensors& parts, int axis) {
  Shape shape = parts[0].shape();
  for (size_t i = 1; i < parts.size(); i++) {
    check<DTypeError>(parts[i].dtype() == parts[0].dtype(), "[cat] part ", i, " is ", parts[i].dtype(),
                      " but part 0 is ", parts[0].dtype());
    check<DeviceError>(parts[i].device() == parts[0].device(), "[cat] part ", i, " is on another device than part 0");
    Shape same = parts[i].shape();
    if (same.size() == shape.size()) same[axis] = parts[0].shape()[axis];
    check<ShapeError>(same == parts[0].shape(), "[cat] part ", i, " has shape ", parts[i].shape(),
                      ", which differs from ", parts[0].shape(), " beyond axis ", axis);
    shape[axis] += parts[i].size(axis);
  }
  return shape;
}

Tensor cat(const Tensors& parts, int64_t axis_in) {
  check<ShapeError>(!parts.empty(), "[cat] needs at least one tensor");
  int axis = normalize_axis("cat", axis_in, parts[0].ndim());
  Shape shape = check_cat(parts, axis);
  if (parts.size() == 1) return parts[0];
  constexpr size_t kMaxInputs = 64;  // of record()
  if (parts.size() > kMaxInputs && any_tracked(parts)) {
    Tensors groups;
    for (size_t i = 0; i < parts.size(); i += kMaxInputs)
      groups.push_back(cat(Tensors(parts.begin() + i, parts.begin() + std::min(parts.size(), i + kMaxInputs)), axis));
    return cat(groups, axis);
  }
  Tensor y = Tensor::empty(shape, parts[0].dtype(), parts[0].device());
  std::vector<int64_t> ends{0};
  for (const Tensor& p : parts) {
    copy_into(part(y, axis, ends.back(), p.size(axis)), p);
    ends.push_back(ends.back() + p.size(axis));
  }
  return record("cat", y, parts, [axis, ends](const Tensor& dy, Needs needs) {
    Tensors grads(ends.size() - 1);
    for (size_t i = 0; i < grads.size(); i++)
      if (needs[i]) grads[i] = part(dy, axis, ends[i], ends[i + 1] - ends[i]);
    return grads;
  });
}

Tensor stack(const Tensors& parts, int64_t axis_in) {
  check<ShapeError>(!parts.empty(), "[stack] needs at least one tensor");
  int axis = normalize_axis("stack", axis_in, parts[0].ndim() + 1);
  Tensors rows;
  for (const Tensor& p : parts) {
    check<ShapeError>(p.shape() == parts[0].shape(), "[stack] shapes must be equal but are ", parts[0].shape(), " and ",
                      p.shape());
    Shape shape;
    for (int i = 0; i <= p.ndim(); i++) shape.push_back(i < axis ? p.size(i) : i == axis ? 1 : p.size(i - 1));
    rows.push_back(reshape(p, shape));
  }
  return cat(rows, axis);
}

Tensor pad_rows(const Tensor& x, int64_t rows) {
  check<ShapeError>(x.ndim() >= 1, "[pad_rows] x needs rows but is a scalar");
  check<ValueError>(rows >= 0, "[pad_rows] cannot add ", rows, " rows");
  if (rows == 0) return x;
  Shape shape = x.shape();
  shape[0] += rows;
  Tensor y = Tensor::empty(shape, x.dtype(), x.device()), tail = part(y, 0, x.size(0), rows);
  copy_into(part(y, 0, 0, x.size(0)), x);
  copy_into(tail, broadcast_to(Tensor::zeros({}, x.dtype(), x.device()), tail.shape()));
  return record("pad_rows", y, {x}, [n = x.size(0)](const Tensor& dy, Needs) { return Tensors{part(dy, 0, 0, n)}; });
}

// ---- gather_rows --------------------------------------------------------------------------------------------------

// y[i] = x[index[i]], or zeros where index[i] is -1; dx[index[i]] += dy[i] in the order of i, summed in f32.
Tensor gather_rows(const Tensor& x_in, const Tensor& index_in) {
  check<ShapeError>(x_in.ndim() >= 1, "[gather_rows] x needs rows but is a scalar");
  check<DTypeError>(index_in.dtype() == DType::i64, "[gather_rows] index must be i64 but is ", index_in.dtype());
  Tensor x = contiguous(x_in), host = on_host(index_in), index = host.to(x.device());
  int64_t rows = x.size(0), count = index.numel();
  for (int64_t i : host.values<int64_t>())
    check<IndexError>(i >= -1 && i < rows, "[gather_rows] index must be -1..", rows - 1, " but holds ", i);
  Shape shape = index.shape();
  int64_t cols = 1;
  for (int i = 1; i < x.ndim(); i++) {
    shape.push_back(x.size(i));
    cols *= x.size(i);
  }
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  gather_rows_kernel(x.device(), {x.raw(), index.data<int64_t>(), y.raw(), count, cols * int64_t(size_of(x.dtype()))});
  return record("gather_rows", y, {x}, [=, from = x.shape()](const Tensor& dy, Needs) {
    return Tensors{sum_rows(dy, host.values<int64_t>(), rows, cols).view(from, from.contiguous_strides(), 0)};
  });
}

}  // namespace deem
