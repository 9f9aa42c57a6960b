// layer_norm, rms_norm, group_norm: shapes at the edges of packs, registers, warps and blocks.
#include <algorithm>

#include "ops/group_norm.h"
#include "ops/layer_norm.h"
#include "ops/rms_norm.h"
#include "parity.h"

namespace deem::test {
namespace {

struct Types {
  DType dtype, param;
};
const Types kTypes[] = {{DType::f32, DType::f32},
                        {DType::bf16, DType::bf16},
                        {DType::bf16, DType::f32},
                        {DType::f16, DType::f16},
                        {DType::f16, DType::f32}};

struct RowCase {
  int64_t rows, cols;
};
// Wide enough for each layout, in packs and single elements, and past what registers hold.
const RowCase kRows[] = {{1, 1},   {0, 8},   {5, 31},   {33, 32},  {3, 33},   {70, 64},  {3, 129},
                         {2, 512}, {9, 520}, {1, 1032}, {3, 1100}, {2, 4104}, {1, 8200}, {1, 16392}};

template <class F>
void each_row_case(const char* op, F&& f) {
  for (Types t : kTypes)
    for (RowCase c : kRows) f(str(op, " ", c.rows, " x ", c.cols, " ", t.dtype, " ", t.param), c.rows, c.cols, t);
}

constexpr double kColumns = 1e-5;  // sums over rows, f32 in any case

// Sums in another order may differ in the last bit of f32, and then round to neighbours in bf16 or f16: one unit in the last place.
double tolerance(DType d, double f32 = 2e-6) { return d == DType::f32 ? f32 : d == DType::bf16 ? 0x1p-7 : 0x1p-10; }
double gradient_tolerance(DType d) { return tolerance(d, 1e-5); }

TEST("layer_norm: cuda as cpu") {
  each_row_case("layer_norm", [](const std::string& name, int64_t rows, int64_t cols, Types t) {
    Parity p(name);
    auto x = p.random(rows * cols, t.dtype, 1, 0.5), w = p.random(cols, t.param), b = p.random(cols, t.param),
         y = p.output(rows * cols, t.dtype), mean = p.output(rows), rstd = p.output(rows);
    p.run([&](Device d) {
      layer_norm_kernel(d, {.x = x(d),
                            .w = w(d),
                            .b = b(d),
                            .y = y(d),
                            .mean = mean(d),
                            .rstd = rstd(d),
                            .rows = rows,
                            .cols = cols,
                            .eps = 1e-5f,
                            .dtype = t.dtype,
                            .param_dtype = t.param});
    });
    p.close(y, tolerance(t.dtype, 4e-6),
            "y");  // both sides round the mean and rstd: 2 more units in the last place
    p.close(mean, -1, "mean");
    p.close(rstd, -1, "rstd");
  });
}

void check_layer_norm_backward(const std::string& name, int64_t rows, int64_t cols, Types t, bool needs_x,
                               bool needs_w) {
  Parity p(name);
  auto x = p.random(rows * cols, t.dtype, 1, 0.5), w = p.random(cols, t.param), dy = p.random(rows * cols, t.dtype),
       mean = p.random(rows, DType::f32, 0.1, 0.5), rstd = p.random(rows, DType::f32, 0.5, 1.5);
  auto dx = needs_x ? p.output(rows * cols, t.dtype) : Buffer(), dw = needs_w ? p.output(cols) : Buffer(),
       db = needs_w ? p.output(cols) : Buffer();
  p.run([&](Device d) {
    layer_norm_backward_kernel(d, {.dy = dy(d),
                                   .x = x(d),
                                   .w = w(d),
                                   .mean = mean(d),
                                   .rstd = rstd(d),
                                   .dx = dx(d),
                                   .dw = dw(d),
                                   .db = db(d),
                                   .rows = rows,
                                   .cols = cols,
                                   .dtype = t.dtype,
                                   .param_dtype = t.param});
  });
  if (dx) p.close(dx, gradient_tolerance(t.dtype), "dx");
  if (dw) p.close(dw, kColumns, "dw");
  if (db) p.close(db, kColumns, "db");
}

TEST("layer_norm_backward: cuda as cpu") {
  each_row_case("layer_norm_backward", [](const std::string& name, int64_t rows, int64_t cols, Types t) {
    check_layer_norm_backward(name, rows, cols, t, true, true);
  });
  for (RowCase c : {RowCase{40, 64}, {6, 33}, {3, 9000}}) {
    check_layer_norm_backward(str("dx alone, ", c.cols), c.rows, c.cols, kTypes[1], true, false);
    check_layer_norm_backward(str("dw alone, ", c.cols), c.rows, c.cols, kTypes[0], false, true);
  }
}

TEST("rms_norm: cuda as cpu") {
  each_row_case("rms_norm", [](const std::string& name, int64_t rows, int64_t cols, Types t) {
    Parity p(name);
    auto x = p.random(rows * cols, t.dtype), w = p.random(cols, t.param), y = p.output(rows * cols, t.dtype),
         rstd = p.output(rows);
    p.run([&](Device d) {
      rms_norm_kernel(d, {.x = x(d),
                          .w = w(d),
                          .y = y(d),
                          .rstd = rstd(d),
                          .rows = rows,
                          .cols = cols,
                          .eps = 1e-6f,
                          .dtype = t.dtype,
                          .param_dtype = t.param});
    });
    p.close(y, tolerance(t.dtype), "y");
    p.close(rstd, -1, "rstd");
  });
}

TEST("rms_norm_backward: cuda as cpu") {
  each_row_case("rms_norm_backward", [](const std::string& name, int64_t rows, int64_t cols, Types t) {
    for (bool needs_w : {true, false}) {
      Parity p(name);
      const int64_t chunks = std::clamp<int64_t>(rows / 16, 1, 64);
      auto x = p.random(rows * cols, t.dtype), w = p.random(cols, t.param), dy = p.random(rows * cols, t.dtype),
           rstd = p.random(rows, DType::f32, 0.5, 1.5), part = needs_w ? p.output(chunks * cols) : Buffer(),
           dx = p.output(rows * cols, t.dtype), dw = needs_w ? p.output(cols) : Buffer();
      p.run([&](Device d) {
        rms_norm_backward_kernel(d, {.dy = dy(d),
                                     .x = x(d),
                                     .w = w(d),
                                     .rstd = rstd(d),
                                     .dx = dx(d),
                                     .part = part(d),
                                     .dw = dw(d),
                                     .rows = rows,
                                     .cols = cols,
                                     .chunks = chunks,
                                     .dtype = t.dtype,
                                     .param_dtype = t.param});
      });
      p.close(dx, gradient_tolerance(t.dtype), "dx");
      if (dw) p.close(dw, kColumns, "dw");
    }
  });
}

struct GroupCase {
  int64_t n, positions, channels, groups;
};
// Channels of one pack, of many, not of whole packs, of more than one tile; groups that lie across packs and tiles.
const GroupCase kGroups[] = {{1, 1, 1, 1},     {2, 5, 6, 3},    {0, 4, 8, 2},     {3, 33, 8, 8},     {1, 64, 40, 4},
                             {2, 17, 320, 32}, {1, 70, 33, 11}, {1, 1100, 16, 2}, {1, 18, 2080, 32}, {1, 3, 300, 1}};

TEST("group_norm: cuda as cpu") {
  for (Types t : kTypes)
    for (GroupCase c : kGroups)
      for (bool silu : {false, true}) {
        Parity p(str("group_norm ", c.n, " x ", c.positions, " x ", c.channels, " / ", c.groups, " ", t.dtype, " ",
                     t.param));
        const int64_t size = c.n * c.positions * c.channels, block = std::max<int64_t>(1, 16384 / c.channels),
                      blocks = (c.positions + block - 1) / block;
        auto x = p.random(size, t.dtype, 2, 0.5), w = p.random(c.channels, t.param), b = p.random(c.channels, t.param),
             y = p.output(size, t.dtype), mean = p.output(c.n * c.groups), rstd = p.output(c.n * c.groups);
        auto block_mean = p.output(c.n * blocks * c.channels), block_m2 = p.output(c.n * blocks * c.channels);
        p.run([&](Device d) {
          group_norm_kernel(d, {.x = x(d),
                                .w = w(d),
                                .b = b(d),
                                .y = y(d),
                                .mean = mean(d),
                                .rstd = rstd(d),
                                .block_mean = block_mean(d),
                                .block_m2 = block_m2(d),
                                .n = c.n,
                                .positions = c.positions,
                                .channels = c.channels,
                                .groups = c.groups,
                                .block = block,
                                .eps = 1e-5f,
                                .silu = silu,
                                .dtype = t.dtype,
                                .param_dtype = t.param});
        });
        if (c.positions * c.channels > c.groups) p.close(y, tolerance(t.dtype, 4e-6), "y");
        else p.close(y, 1e-2, "y");  // a group of one element: its variance is 0, and rstd a few hundred
        p.close(mean, -1, "mean");
        p.close(rstd, -1, "rstd");
      }
}

TEST("group_norm_backward: cuda as cpu") {
  for (Types t : kTypes)
    for (GroupCase c : kGroups)
      for (int mode = 0; mode < 4; mode++) {  // silu or not, and once each dx or the parameters alone
        const bool silu = mode % 2, needs_x = mode != 2, needs_w = mode != 3;
        Parity p(str("group_norm_backward ", c.n, " x ", c.positions, " x ", c.channels, " / ", c.groups, " ", t.dtype,
                     " ", t.param, " mode ", mode));
        const int64_t size = c.n * c.positions * c.channels, block = std::max<int64_t>(1, 16384 / c.channels),
                      blocks = (c.positions + block - 1) / block;
        auto x = p.random(size, t.dtype, 2, 0.5), dy = p.random(size, t.dtype), w = p.random(c.channels, t.param),
             b = p.random(c.channels, t.param), mean = p.random(c.n * c.groups, DType::f32, 0.1, 0.5),
             rstd = p.random(c.n * c.groups, DType::f32, 0.2, 0.8);
        auto dx = needs_x ? p.output(size, t.dtype) : Buffer(), dw = needs_w ? p.output(c.channels) : Buffer(),
             db = needs_w ? p.output(c.channels) : Buffer();
        auto block_dw = p.output(c.n * blocks * c.channels), block_db = p.output(c.n * blocks * c.channels),
             group_dw = p.output(c.n * c.groups), group_db = p.output(c.n * c.groups);
        p.run([&](Device d) {
          group_norm_backward_kernel(d, {.dy = dy(d),
                                         .x = x(d),
                                         .w = w(d),
                                         .b = b(d),
                                         .mean = mean(d),
                                         .rstd = rstd(d),
                                         .dx = dx(d),
                                         .dw = dw(d),
                                         .db = db(d),
                                         .block_dw = block_dw(d),
                                         .block_db = block_db(d),
                                         .group_dw = group_dw(d),
                                         .group_db = group_db(d),
                                         .n = c.n,
                                         .positions = c.positions,
                                         .channels = c.channels,
                                         .groups = c.groups,
                                         .block = block,
                                         .silu = silu,
                                         .dtype = t.dtype,
                                         .param_dtype = t.param});
        });
        if (dx) p.close(dx, gradient_tolerance(t.dtype), "dx");
        if (dw) p.close(dw, kColumns, "dw");
        if (db) p.close(db, kColumns, "db");
      }
}

}  // namespace
}  // namespace deem::test
