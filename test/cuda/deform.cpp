// ms_deform_attn and mmfs_attention: samples inside, across borders and far outside; heads of whole packs and not.
#include <cmath>
#include <cstdlib>

#include "ops/mmfs_attention.h"
#include "parity.h"

namespace deem::test {
namespace {

const DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
// Sums in another order may differ in the last bit of f32, and then round to neighbours in bf16 or f16: one unit in the last place.
double tolerance(DType d, double f32 = 2e-6) { return d == DType::f32 ? f32 : d == DType::bf16 ? 0x1p-7 : 0x1p-10; }
double gradient_tolerance(DType d) { return tolerance(d, 1e-5); }

using Sides = std::vector<std::pair<int32_t, int32_t>>;  // heights and widths

struct Levels {
  std::vector<DeformLevel> list;
  int64_t rows = 0;

  explicit Levels(const Sides& sides) {
    for (auto [height, width] : sides) {
      list.push_back({height, width, int32_t(rows), 0.5f + 0.75f * float(list.size())});
      rows += height * width;
    }
  }
  Buffer buffer(Parity& p) const { return p.raw(list.data(), int64_t(list.size() * sizeof(DeformLevel)), DType::u8); }
  int64_t count() const { return int64_t(list.size()); }
};

constexpr int64_t kSlots = 3;  // of scratch memory, for the CPU's kernels

struct DeformCase {
  int64_t b, q, heads, dim, points;
  Sides sides;
};
const std::vector<DeformCase>& deform_cases() {
  static const std::vector<DeformCase> cases{
      {1, 1, 1, 1, 1, {{1, 1}}},
      {2, 3, 2, 6, 3, {{3, 5}, {2, 2}}},
      {1, 5, 3, 32, 4, {{8, 8}, {4, 4}, {1, 9}}},
      {1, 2, 2, 40, 8, {{12, 11}, {5, 7}, {3, 3}, {2, 1}, {1, 1}}},  // 40 samples: more than a warp has lanes
      {2, 9, 1, 72, 2, {{20, 31}}},  // 620 rows: many tiles; more than one tile of channels
      {1, 2, 1, 300, 2, {{3, 3}}},   // more packs than lanes
      {1, 0, 2, 8, 2, {{2, 3}}},
  };
  return cases;
}

std::string name_of(const DeformCase& c, DType t) {
  return str(c.b, " x ", c.q, " x ", c.heads, " x ", c.dim, ", ", c.points, " points ", t);
}

TEST("ms_deform_attn: cuda as cpu") {
  for (DType t : kTypes)
    for (const DeformCase& c : deform_cases())
      for (bool packed : {false, true}) {
        Parity p(name_of(c, t));
        const Levels levels(c.sides);
        const int64_t samples = c.b * c.q * c.heads * levels.count() * c.points,
                      slot =
                          deform_slot_size(levels.count() * c.points, c.dim, packed ? levels.rows * c.dim : 0, false);
        auto value = p.random(c.b * levels.rows * c.heads * c.dim, t), at = p.random(samples * 2, DType::f32, 0.7, 0.5),
             weights = p.random(samples), list = levels.buffer(p), scratch = p.output(kSlots * slot),
             y = p.output(c.b * c.q * c.heads * c.dim, t);
        p.run([&](Device d) {
          ms_deform_attn_kernel(d, {.value = value(d),
                                    .locations = at(d),
                                    .weights = weights(d),
                                    .y = y(d),
                                    .levels = list(d),
                                    .b = c.b,
                                    .q = c.q,
                                    .heads = c.heads,
                                    .dim = c.dim,
                                    .rows = levels.rows,
                                    .n_levels = levels.count(),
                                    .points = c.points,
                                    .packed = packed,
                                    .scratch = {scratch(d), kSlots, slot},
                                    .dtype = t});
        });
        p.close(y, tolerance(t));
      }
}

void check_deform_backward(const DeformCase& c, DType t, bool needs_value, bool needs_rest) {
  Parity p(name_of(c, t) + " backward");
  const Levels levels(c.sides);
  const int64_t samples = c.b * c.q * c.heads * levels.count() * c.points,
                slot = deform_slot_size(levels.count() * c.points, c.dim, levels.rows * c.dim, true);
  auto value = p.random(c.b * levels.rows * c.heads * c.dim, t), at = p.random(samples * 2, DType::f32, 0.7, 0.5),
       weights = p.random(samples), dy = p.random(c.b * c.q * c.heads * c.dim, t), list = levels.buffer(p),
       scratch = p.output(kSlots * slot);
  if (samples > 0) at.host<float>()[0] = NAN;
  auto dvalue = needs_value ? p.output(value.size(), t) : Buffer(), dat = needs_rest ? p.output(samples * 2) : Buffer(),
       dweights = needs_rest ? p.output(samples) : Buffer();
  p.run([&](Device d) {
    ms_deform_attn_backward_kernel(d, {.dy = dy(d),
                                       .value = value(d),
                                       .locations = at(d),
                                       .weights = weights(d),
                                       .dvalue = dvalue(d),
                                       .dlocations = dat(d),
                                       .dweights = dweights(d),
                                       .levels = list(d),
                                       .b = c.b,
                                       .q = c.q,
                                       .heads = c.heads,
                                       .dim = c.dim,
                                       .rows = levels.rows,
                                       .n_levels = levels.count(),
                                       .points = c.points,
                                       .scratch = {scratch(d), kSlots, slot},
                                       .dtype = t});
  });
  if (dvalue) p.close(dvalue, gradient_tolerance(t), "dvalue");
  if (dat) p.close(dat, 1e-5, "dlocations");
  if (dweights) p.close(dweights, 1e-5, "dweights");
}

TEST("ms_deform_attn_backward: cuda as cpu") {
  for (DType t : kTypes)
    for (const DeformCase& c : deform_cases()) check_deform_backward(c, t, true, true);
  check_deform_backward(deform_cases()[2], DType::f32, true, false);
  check_deform_backward(deform_cases()[2], DType::f32, false, true);
}

// Small whole numbers and quarters of pixels: sums are exact, so any order of the atomics gives the same bits.
TEST("ms_deform_attn_backward: without order") {
  setenv("DEEM_CUDA_NONDETERMINISTIC", "1", 1);
  for (int64_t dim : {int64_t(8), int64_t(40)}) {
    Parity p(str("atomics, heads of ", dim));
    const Levels levels({{8, 16}, {4, 4}});
    const int64_t q = 70, heads = 2, points = 3, samples = q * heads * 2 * points,
                  slot = deform_slot_size(2 * points, dim, levels.rows * dim, true);
    auto value = p.random(levels.rows * heads * dim), at = p.integers(samples * 2, DType::i64, 0, 64),
         weights = p.integers(samples, DType::i64, -3, 4), dy = p.integers(q * heads * dim, DType::i64, -4, 5),
         list = levels.buffer(p), scratch = p.output(slot), dvalue = p.output(value.size());
    auto floats = [&](const Buffer& from, float unit, float offset) {
      std::vector<float> v;
      for (int64_t i = 0; i < from.size(); i++) v.push_back(float(from.host<int64_t>()[i]) * unit + offset);
      return p.of(v);
    };
    auto at_f = floats(at, 1.0f / 64, 0), weights_f = floats(weights, 1, 0), dy_f = floats(dy, 1, 0);
    p.run([&](Device d) {
      ms_deform_attn_backward_kernel(d, {.dy = dy_f(d),
                                         .value = value(d),
                                         .locations = at_f(d),
                                         .weights = weights_f(d),
                                         .dvalue = dvalue(d),
                                         .dlocations = nullptr,
                                         .dweights = nullptr,
                                         .levels = list(d),
                                         .b = 1,
                                         .q = q,
                                         .heads = heads,
                                         .dim = dim,
                                         .rows = levels.rows,
                                         .n_levels = 2,
                                         .points = points,
                                         .scratch = {scratch(d), 1, slot},
                                         .dtype = DType::f32});
    });
    p.same(dvalue);
  }
  unsetenv("DEEM_CUDA_NONDETERMINISTIC");
}

struct MmfsCase {
  int64_t b, images, q, heads, dim, points, relative_rows;
  bool shared;  // one reference point for all queries
  Sides sides;
};
const std::vector<MmfsCase>& mmfs_cases() {
  static const std::vector<MmfsCase> cases{
      {1, 1, 1, 1, 1, 1, 2, true, {{1, 1}}},
      {2, 3, 5, 2, 6, 3, 4, false, {{3, 5}, {2, 2}}},
      {1, 2, 7, 2, 32, 8, 3, true, {{8, 8}, {4, 4}, {2, 2}}},
      {1, 2, 3, 1, 40, 9, 3, false, {{12, 11}, {5, 7}, {3, 3}, {2, 1}}},  // 36 samples: more than a warp has lanes
      {2, 1, 9, 1, 72, 2, 3, true, {{20, 31}}},                           // 620 rows: many tiles
      {1, 1, 2, 1, 300, 2, 2, true, {{3, 3}}},                            // more packs than lanes
      {1, 1, 2, 1, 4, 140, 2, false, {{3, 3}}},                           // more coordinates than a block has threads
      {2, 0, 3, 2, 8, 2, 3, true, {{2, 3}}},                              // no images: the ignore token alone
      {1, 2, 0, 2, 8, 2, 3, true, {{2, 3}}},
  };
  return cases;
}

// Inputs of one case; `hide`: no query sees any image.
struct MmfsInputs {
  Levels levels;
  MmfsShape shape;
  Buffer value, offsets, offset_table, logits, logit_table, reference, ignore, relative, list;

  MmfsInputs(Parity& p, const MmfsCase& c, DType t, bool hide) : levels(c.sides) {
    const int64_t width = levels.count() * (c.points + 1);
    value = p.random(c.b * c.images * levels.rows * c.heads * c.dim, t);
    offsets = p.random(c.b * c.q * c.heads * c.points * 2, DType::f32, 2);
    offset_table = p.random(c.relative_rows * c.heads * c.points * 2, DType::f32, 1);
    logits = p.random(c.b * c.q * c.heads * width, DType::f32, 2);
    logit_table = p.random(c.relative_rows * c.heads * width);
    reference = p.random((c.shared ? 1 : c.q) * 2, DType::f32, 0.6, 0.5);
    ignore = p.random(c.heads * c.dim);
    relative = p.integers(c.b * c.images * c.q, DType::i64, 0, hide ? 1 : c.relative_rows);
    list = levels.buffer(p);
    shape = {c.b,         c.images,       c.q,      c.heads,         c.dim,
             levels.rows, levels.count(), c.points, c.relative_rows, c.shared ? 1 : c.q,
             nullptr};
  }
  MmfsShape on(Device d) const {
    MmfsShape s = shape;
    s.levels = list(d);
    return s;
  }
};

std::string name_of(const MmfsCase& c, DType t) {
  return str("mmfs ", c.b, " x ", c.images, " images, ", c.q, " x ", c.heads, " x ", c.dim, ", ", c.points, " points ",
             t);
}

TEST("mmfs_attention: cuda as cpu") {
  for (DType t : kTypes)
    for (const MmfsCase& c : mmfs_cases())
      for (bool hide : {false, true}) {
        Parity p(name_of(c, t));
        MmfsInputs in(p, c, t, hide);
        const int64_t slot = mmfs_slot_size(in.shape, false, false);
        auto scratch = p.output(kSlots * slot), y = p.output(c.b * c.q * c.heads * c.dim, t);
        p.run([&](Device d) {
          mmfs_attention_kernel(d, {.value = in.value(d),
                                    .offsets = in.offsets(d),
                                    .offset_table = in.offset_table(d),
                                    .logits = in.logits(d),
                                    .logit_table = in.logit_table(d),
                                    .reference = in.reference(d),
                                    .ignore_token = in.ignore(d),
                                    .relative = in.relative(d),
                                    .y = y(d),
                                    .shape = in.on(d),
                                    .packed = false,
                                    .scratch = {scratch(d), kSlots, slot},
                                    .dtype = t});
        });
        p.close(y, tolerance(t));
      }
}

TEST("mmfs_attention_backward: cuda as cpu") {
  for (DType t : kTypes)
    for (const MmfsCase& c : mmfs_cases())
      for (int mode = 0; mode < 3; mode++) {
        const bool hide = mode == 1, needs_value = mode != 2;
        Parity p(name_of(c, t) + str(" backward, mode ", mode));
        MmfsInputs in(p, c, t, hide);
        const int64_t slot = mmfs_slot_size(in.shape, true, true);
        auto scratch = p.output(kSlots * slot), dy = p.random(c.b * c.q * c.heads * c.dim, t);
        auto like = [&](const Buffer& b) { return p.output(b.size()); };
        auto part = [&](const Buffer& b) { return p.zeros(c.b * b.size()); };
        auto dvalue = needs_value ? p.output(in.value.size(), t) : Buffer();
        auto doffsets = like(in.offsets), doffset_table = like(in.offset_table), dlogits = like(in.logits),
             dlogit_table = like(in.logit_table), dreference = like(in.reference), dignore = like(in.ignore);
        auto offset_parts = part(in.offset_table), logit_parts = part(in.logit_table), ignore_parts = part(in.ignore),
             reference_parts = p.zeros(c.b * c.heads * c.q * 2);
        p.run([&](Device d) {
          mmfs_attention_backward_kernel(d, {.dy = dy(d),
                                             .value = in.value(d),
                                             .offsets = in.offsets(d),
                                             .offset_table = in.offset_table(d),
                                             .logits = in.logits(d),
                                             .logit_table = in.logit_table(d),
                                             .reference = in.reference(d),
                                             .ignore_token = in.ignore(d),
                                             .relative = in.relative(d),
                                             .dvalue = dvalue(d),
                                             .doffsets = doffsets(d),
                                             .dlogits = dlogits(d),
                                             .doffset_table = doffset_table(d),
                                             .dlogit_table = dlogit_table(d),
                                             .dreference = dreference(d),
                                             .dignore_token = dignore(d),
                                             .offset_table_parts = offset_parts(d),
                                             .logit_table_parts = logit_parts(d),
                                             .reference_parts = reference_parts(d),
                                             .ignore_parts = ignore_parts(d),
                                             .shape = in.on(d),
                                             .scratch = {scratch(d), kSlots, slot},
                                             .dtype = t});
        });
        if (dvalue) p.close(dvalue, gradient_tolerance(t), "dvalue");
        p.close(doffsets, 1e-5, "doffsets");
        p.close(dlogits, 1e-5, "dlogits");
        p.close(doffset_table, 1e-5, "doffset_table");
        p.close(dlogit_table, 1e-5, "dlogit_table");
        p.close(dreference, 1e-5, "dreference");
        p.close(dignore, 1e-5, "dignore_token");
      }
}

}  // namespace
}  // namespace deem::test
