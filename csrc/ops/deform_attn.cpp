// y[b, q, h, :] = sum over levels l and points p of weights[b, q, h, l, p] * bilinear(value of level l, locations[...,
// l, p]); location (x, y) in 0..1 lies at pixel (x * width - 1/2, y * height - 1/2), zero outside. On a pixel's centre
// the derivative is that of the cell to its right and below.
#include "ops/deform_attn.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<DeformAttnArgs> ms_deform_attn_kernel{"ms_deform_attn"};
constinit Kernel<DeformAttnBackwardArgs> ms_deform_attn_backward_kernel{"ms_deform_attn_backward"};

DeformSlots::DeformSlots(int64_t slots, int64_t slot_size, Device device) : DeformScratch{nullptr, 0, 0} {
  if (device != Device::cpu) return;
  memory_ = Tensor::empty({slots, slot_size});
  static_cast<DeformScratch&>(*this) = {memory_.data<float>(), slots, slot_size};
}

std::vector<DeformLevel> deform_levels(const char* op, const LevelShapes& shapes, int64_t rows) {
  check<ShapeError>(!shapes.empty(), "[", op, "] needs at least one level");
  constexpr int64_t kMost = int64_t(1) << 20;
  std::vector<DeformLevel> levels;
  int64_t start = 0;
  for (auto [height, width] : shapes) {
    check<ShapeError>(height > 0 && width > 0 && height < kMost && width < kMost, "[", op,
                      "] level sides must be in 1..2^20 but one is ", height, " x ", width);
    check<ShapeError>(start + height * width < int64_t(1) << 31, "[", op, "] levels have more than 2^31 positions");
    levels.push_back({int32_t(height), int32_t(width), int32_t(start), 1});
    start += height * width;
  }
  check<ShapeError>(start == rows, "[", op, "] the levels have ", start, " positions but value has ", rows);
  return levels;
}

static Tensor as_f32(const Tensor& x) {
  Tensor t = x.detach();
  return t.dtype() == DType::f32 ? contiguous(t) : cast(t, DType::f32);
}

static Tensor as(const Tensor& x, DType dtype) { return !x || x.dtype() == dtype ? x : cast(x, dtype); }

static Tensors ms_deform_attn_backward(const Tensor& dy, const Tensor& value, const std::vector<DeformLevel>& levels,
                                       const Tensor& locations, const Tensor& weights, DType locations_dtype,
                                       DType weights_dtype, Needs needs) {
  int64_t b = value.size(0), heads = value.size(2), dim = value.size(3), rows = value.size(1);
  int64_t samples = int64_t(levels.size()) * locations.size(4), slots = std::min<int64_t>(num_threads(), b * heads);
  Device device = value.device();
  DeformSlots scratch(slots, deform_slot_size(samples, dim, rows * dim, true), device);
  Uploaded on_device(levels, device);
  Tensor dvalue = needs[0] ? Tensor::empty(value.shape(), value.dtype(), device) : Tensor();
  Tensor dlocations = needs[1] ? Tensor::empty(locations.shape(), DType::f32, device) : Tensor();
  Tensor dweights = needs[2] ? Tensor::empty(weights.shape(), DType::f32, device) : Tensor();
  ms_deform_attn_backward_kernel(device, {.dy = dy.raw(),
                                          .value = value.raw(),
                                          .locations = locations.data<float>(),
                                          .weights = weights.data<float>(),
                                          .dvalue = dvalue ? dvalue.raw() : nullptr,
                                          .dlocations = dlocations ? dlocations.data<float>() : nullptr,
                                          .dweights = dweights ? dweights.data<float>() : nullptr,
                                          .levels = on_device.data(),
                                          .b = b,
                                          .q = locations.size(1),
                                          .heads = heads,
                                          .dim = dim,
                                          .rows = rows,
                                          .n_levels = int64_t(levels.size()),
                                          .points = locations.size(4),
                                          .scratch = scratch,
                                          .dtype = value.dtype()});
  return {dvalue, as(dlocations, locations_dtype), as(dweights, weights_dtype)};
}

Tensor ms_deform_attn(const Tensor& value_in, const LevelShapes& shapes, const Tensor& locations_in,
                      const Tensor& weights_in) {
  const char* op = "ms_deform_attn";
  check<ShapeError>(value_in.ndim() == 4, "[", op, "] value must be [B, S, H, D] but has shape ", value_in.shape());
  int64_t b = value_in.size(0), rows = value_in.size(1), heads = value_in.size(2), dim = value_in.size(3);
  int64_t n_levels = int64_t(shapes.size());
  check<ShapeError>(locations_in.ndim() == 6 && weights_in.ndim() == 5 && weights_in.size(0) == b &&
                        weights_in.size(2) == heads && weights_in.size(3) == n_levels,
                    "[", op, "] weights must be [", b, ", Q, ", heads, ", ", n_levels, ", P] but have shape ",
                    weights_in.shape());
  Shape expected = weights_in.shape();
  expected.push_back(2);
  check<ShapeError>(locations_in.shape() == expected, "[", op, "] locations must be ", expected, " but have shape ",
                    locations_in.shape());
  for (const Tensor* t : {&value_in, &locations_in, &weights_in})
    check<DTypeError>(is_float(t->dtype()), "[", op, "] tensors must be floating but one is ", t->dtype());
  std::vector<DeformLevel> levels = deform_levels(op, shapes, rows);

  Tensor value = contiguous(value_in), locations = as_f32(locations_in), weights = as_f32(weights_in);
  int64_t q = weights.size(1), points = weights.size(4), samples = n_levels * points;
  bool packed = q * samples * 2 >= rows;
  Device device = check_same_device(op, {value, locations, weights});
  DeformSlots scratch(num_threads(), deform_slot_size(samples, dim, packed ? rows * dim : 0, false), device);
  Uploaded on_device(levels, device);
  Tensor y = Tensor::empty({b, q, heads * dim}, value.dtype(), device);
  ms_deform_attn_kernel(device, {.value = value.raw(),
                                 .locations = locations.data<float>(),
                                 .weights = weights.data<float>(),
                                 .y = y.raw(),
                                 .levels = on_device.data(),
                                 .b = b,
                                 .q = q,
                                 .heads = heads,
                                 .dim = dim,
                                 .rows = rows,
                                 .n_levels = n_levels,
                                 .points = points,
                                 .packed = packed,
                                 .scratch = scratch,
                                 .dtype = value.dtype()});
  DType locations_dtype = locations_in.dtype(), weights_dtype = weights_in.dtype();
  return record(op, y, {value, locations_in, weights_in}, [=](const Tensor& dy, Needs needs) {
    return ms_deform_attn_backward(dy, value, levels, locations, weights, locations_dtype, weights_dtype, needs);
  });
}

}  // namespace deem
