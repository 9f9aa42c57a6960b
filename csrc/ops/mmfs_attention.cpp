// The sampling half of MMFS for query q and head h, with own = the query's part and table = the part of each image's
// relative index r(n): logit(n, l, p) = own[l, p] + table[r(n)][l, p], -log(N L) in the ignore slots; prob = softmax
// over all (n, l, slot); location = reference + (own + table[r(n)])[p] * scale[l] / (width[l], height[l]); y = sum of
// prob * bilinear(value[n, l], location) + ignore_token * sum of the ignore slots' prob. Images with r(n) = 0 are
// hidden: their logits of -10000 underflow to probability 0 in f32, so they are skipped.
#include "ops/mmfs_attention.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<MmfsArgs> mmfs_attention_kernel{"mmfs_attention"};
constinit Kernel<MmfsBackwardArgs> mmfs_attention_backward_kernel{"mmfs_attention_backward"};

namespace {

constexpr const char* kOp = "mmfs_attention";

// Inputs in f32 where the kernel wants it, and what the backward pass needs to know.
struct Saved {
  Tensor value, offsets, offset_table, logits, logit_table, relative, reference, ignore_token;
  std::vector<DeformLevel> levels;
  MmfsShape shape;
  std::vector<DType> dtypes;  // of the inputs, in order
};

Tensor as_f32(const Tensor& x) {
  Tensor t = x.detach();
  return t.dtype() == DType::f32 ? contiguous(t) : cast(t, DType::f32);
}

void expect(const Tensor& t, const char* name, const Shape& shape) {
  check<ShapeError>(t.shape() == shape, "[", kOp, "] ", name, " must be ", shape, " but has shape ", t.shape());
}

MmfsShape check_shapes(const Tensor& value, const Tensor& offsets, const Tensor& offset_table, const Tensor& logits,
                       const Tensor& logit_table, const Tensor& relative, const Tensor& reference,
                       const Tensor& ignore_token, const MmfsOptions& o) {
  check<ValueError>(o.heads > 0 && o.points > 0 && o.heads < (1 << 20) && o.points < (1 << 20), "[", kOp,
                    "] heads and points must be positive but are ", o.heads, " and ", o.points);
  check<ShapeError>(o.scale_ratios.size() == o.level_shapes.size(), "[", kOp, "] needs a scale ratio for each of the ",
                    o.level_shapes.size(), " levels but got ", o.scale_ratios.size());
  check<ShapeError>(value.ndim() == 4 && value.size(3) > 0 && value.size(3) % o.heads == 0, "[", kOp,
                    "] value must be [B, N, S, ", o.heads, " * D] but has shape ", value.shape());
  check<ShapeError>(offsets.ndim() == 3 && offset_table.ndim() == 2, "[", kOp,
                    "] offsets must be [B, Q, H * P * 2] and their table [M, H * P * 2] but have shapes ",
                    offsets.shape(), " and ", offset_table.shape());
  MmfsShape s{.b = value.size(0),
              .images = value.size(1),
              .q = offsets.size(1),
              .heads = o.heads,
              .dim = value.size(3) / o.heads,
              .rows = value.size(2),
              .n_levels = int64_t(o.level_shapes.size()),
              .points = o.points,
              .relative_rows = offset_table.size(0),
              .reference_rows = reference.ndim() == 2 ? reference.size(0) : 0,
              .levels = nullptr};
  int64_t coordinates = s.heads * s.points * 2, slots = s.heads * s.n_levels * (s.points + 1);
  expect(offsets, "offsets", {s.b, s.q, coordinates});
  expect(offset_table, "offset_table", {s.relative_rows, coordinates});
  expect(logits, "logits", {s.b, s.q, slots});
  expect(logit_table, "logit_table", {s.relative_rows, slots});
  expect(relative, "relative", {s.b, s.images, s.q});
  check<ShapeError>(
      reference.ndim() == 2 && reference.size(1) == 2 && (s.reference_rows == 1 || s.reference_rows == s.q), "[", kOp,
      "] reference must be [1 or ", s.q, ", 2] but has shape ", reference.shape());
  expect(ignore_token, "ignore_token", {value.size(3)});
  return s;
}

void check_types(const Tensors& floating, const Tensor& relative, const MmfsShape& s, const MmfsOptions& o) {
  for (const Tensor& t : floating)
    check<DTypeError>(is_float(t.dtype()), "[", kOp, "] all inputs but relative must be floating but one is ",
                      t.dtype());
  check<DTypeError>(relative.dtype() == DType::i64, "[", kOp, "] relative must be i64 but is ", relative.dtype());
  for (double r : o.scale_ratios)
    check<ValueError>(std::isfinite(r), "[", kOp, "] scale ratios must be finite but one is ", r);
  for (int64_t r : relative.values<int64_t>())
    check<IndexError>(r >= 0 && r < s.relative_rows, "[", kOp, "] relative must be in 0..", s.relative_rows - 1,
                      " but holds ", r);
}

Tensors mmfs_attention_backward(const Tensor& dy, const Saved& in, Needs needs) {
  Device device = in.value.device();
  Uploaded levels(in.levels, device);
  MmfsShape s = in.shape;
  s.levels = levels.data();
  DeformSlots scratch(std::min<int64_t>(num_threads(), s.b * s.heads), mmfs_slot_size(s, true, true), device);
  auto like = [&](const Tensor& t) { return Tensor::empty(t.shape(), DType::f32, device); };
  auto part = [&](const Tensor& t) { return Tensor::zeros({s.b, t.numel()}, DType::f32, device); };
  Tensor dvalue = needs[0] ? Tensor::empty(in.value.shape(), in.value.dtype(), device) : Tensor();
  Tensor doffsets = like(in.offsets), doffset_table = like(in.offset_table), dlogits = like(in.logits),
         dlogit_table = like(in.logit_table), dreference = like(in.reference), dignore_token = like(in.ignore_token);
  Tensor offset_parts = part(in.offset_table), logit_parts = part(in.logit_table), ignore_parts = part(in.ignore_token),
         reference_parts = Tensor::zeros({s.b, s.heads, s.q, 2}, DType::f32, device);
  mmfs_attention_backward_kernel(device, {.dy = dy.raw(),
                                          .value = in.value.raw(),
                                          .offsets = in.offsets.data<float>(),
                                          .offset_table = in.offset_table.data<float>(),
                                          .logits = in.logits.data<float>(),
                                          .logit_table = in.logit_table.data<float>(),
                                          .reference = in.reference.data<float>(),
                                          .ignore_token = in.ignore_token.data<float>(),
                                          .relative = in.relative.data<int64_t>(),
                                          .dvalue = dvalue ? dvalue.raw() : nullptr,
                                          .doffsets = doffsets.data<float>(),
                                          .dlogits = dlogits.data<float>(),
                                          .doffset_table = doffset_table.data<float>(),
                                          .dlogit_table = dlogit_table.data<float>(),
                                          .dreference = dreference.data<float>(),
                                          .dignore_token = dignore_token.data<float>(),
                                          .offset_table_parts = offset_parts.data<float>(),
                                          .logit_table_parts = logit_parts.data<float>(),
                                          .reference_parts = reference_parts.data<float>(),
                                          .ignore_parts = ignore_parts.data<float>(),
                                          .shape = s,
                                          .scratch = scratch,
                                          .dtype = in.value.dtype()});
  Tensors grads{dvalue, doffsets, doffset_table, dlogits, dlogit_table, dreference, dignore_token};
  for (size_t i = 0; i < grads.size(); i++) {
    if (!needs[i]) grads[i] = Tensor();
    else if (grads[i].dtype() != in.dtypes[i]) grads[i] = cast(grads[i], in.dtypes[i]);
  }
  return grads;
}

}  // namespace

Tensor mmfs_attention(const Tensor& value, const Tensor& offsets, const Tensor& offset_table, const Tensor& logits,
                      const Tensor& logit_table, const Tensor& relative, const Tensor& reference,
                      const Tensor& ignore_token, const MmfsOptions& options) {
  Saved in;
  in.shape =
      check_shapes(value, offsets, offset_table, logits, logit_table, relative, reference, ignore_token, options);
  in.relative = on_host(relative);
  Device device = check_same_device(kOp, {value, offsets, offset_table, logits, logit_table, reference, ignore_token});
  Tensors inputs{value, offsets, offset_table, logits, logit_table, reference, ignore_token};
  check_types(inputs, in.relative, in.shape, options);
  in.relative = in.relative.to(device);
  in.levels = deform_levels(kOp, options.level_shapes, in.shape.rows);
  for (size_t l = 0; l < in.levels.size(); l++) in.levels[l].scale = float(options.scale_ratios[l]);
  for (const Tensor& t : inputs) in.dtypes.push_back(t.dtype());
  inputs[0] = contiguous(value);
  in.value = inputs[0].detach();
  in.offsets = as_f32(offsets);
  in.offset_table = as_f32(offset_table);
  in.logits = as_f32(logits);
  in.logit_table = as_f32(logit_table);
  in.reference = as_f32(reference);
  in.ignore_token = as_f32(ignore_token);

  Uploaded levels(in.levels, device);
  MmfsShape s = in.shape;
  s.levels = levels.data();
  bool packed = s.q * s.n_levels * s.points * 2 >= s.rows;
  DeformSlots scratch(num_threads(), mmfs_slot_size(s, packed, false), device);
  Tensor y = Tensor::empty({s.b, s.q, s.heads * s.dim}, value.dtype(), device);
  mmfs_attention_kernel(device, {.value = in.value.raw(),
                                 .offsets = in.offsets.data<float>(),
                                 .offset_table = in.offset_table.data<float>(),
                                 .logits = in.logits.data<float>(),
                                 .logit_table = in.logit_table.data<float>(),
                                 .reference = in.reference.data<float>(),
                                 .ignore_token = in.ignore_token.data<float>(),
                                 .relative = in.relative.data<int64_t>(),
                                 .y = y.raw(),
                                 .shape = s,
                                 .packed = packed,
                                 .scratch = scratch,
                                 .dtype = value.dtype()});
  return record(kOp, y, inputs, [in](const Tensor& dy, Needs needs) { return mmfs_attention_backward(dy, in, needs); });
}

}  // namespace deem
