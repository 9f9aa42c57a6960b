// Resampling of grids, align_corners = false: output i looks at source coordinate (i + 1/2) * in / out - 1/2. Bicubic
// is Keys' kernel with A = -0.75 and clamped edges. Separable: the height first, then the width.
#include "ops/resample.h"

#include <algorithm>
#include <cmath>

#include "ops.h"
#include "ops/device.h"
#include "ops/view.h"

namespace deem {

constinit Kernel<ResampleAxisArgs> resample_axis_kernel{"resample_axis"};
constinit Kernel<ResizeNearestArgs> resize_nearest_kernel{"resize_nearest"};
constinit Kernel<ResizeNearestArgs> resize_nearest_backward_kernel{"resize_nearest_backward"};

namespace {

// Weighted source positions of each output of one axis.
struct Taps {
  std::vector<int64_t> begin{0}, index;
  std::vector<float> weight;
  int64_t size() const { return int64_t(begin.size()) - 1; }
};

// Coordinates are f32 as in the published model: masks are compared with 0 after resizing, so whether a weight is
// exactly 0 matters.
float source_coordinate(int64_t i, int64_t in, int64_t out) {
  float scale = float(in) / float(out);
  return scale * (float(i) + 0.5f) - 0.5f;
}

Taps bicubic_taps(int64_t in, int64_t out) {
  constexpr float A = -0.75f;
  auto near = [](float t) { return ((A + 2) * t - (A + 3)) * t * t + 1; };       // |t| <= 1
  auto far = [](float t) { return ((A * t - 5 * A) * t + 8 * A) * t - 4 * A; };  // 1 < |t| < 2
  Taps taps;
  for (int64_t i = 0; i < out; i++) {
    float s = source_coordinate(i, in, out), first = std::floor(s), t = s - first;
    for (int k = -1; k <= 2; k++) {
      taps.index.push_back(std::clamp<int64_t>(int64_t(first) + k, 0, in - 1));
      taps.weight.push_back(k == -1 ? far(t + 1) : k == 0 ? near(t) : k == 1 ? near(1 - t) : far(2 - t));
    }
    taps.begin.push_back(int64_t(taps.index.size()));
  }
  return taps;
}

Taps bilinear_taps(int64_t in, int64_t out) {
  Taps taps;
  for (int64_t i = 0; i < out; i++) {
    float s = std::max(0.0f, source_coordinate(i, in, out));
    int64_t first = std::min(int64_t(s), in - 1);
    float t = s - float(first);
    taps.index.insert(taps.index.end(), {first, std::min(first + 1, in - 1)});
    taps.weight.insert(taps.weight.end(), {1 - t, t});
    taps.begin.push_back(int64_t(taps.index.size()));
  }
  return taps;
}

Taps transpose(const Taps& taps, int64_t in) {
  std::vector<std::vector<std::pair<int64_t, float>>> lists(static_cast<size_t>(in));
  for (int64_t o = 0; o < taps.size(); o++)
    for (int64_t k = taps.begin[o]; k < taps.begin[o + 1]; k++) lists[taps.index[k]].push_back({o, taps.weight[k]});
  Taps t;
  for (auto& list : lists) {
    for (auto& [o, w] : list) {
      t.index.push_back(o);
      t.weight.push_back(w);
    }
    t.begin.push_back(int64_t(t.index.size()));
  }
  return t;
}

void run_axis(const Taps& taps, const void* x, DType dtype, float* y, int64_t outer, int64_t in, int64_t inner,
              Device device) {
  Uploaded begin(taps.begin, device), index(taps.index, device);
  Uploaded weight(taps.weight, device);
  resample_axis_kernel(device, {.x = x,
                                .y = y,
                                .begin = begin.data(),
                                .index = index.data(),
                                .weight = weight.data(),
                                .outer = outer,
                                .in = in,
                                .out = taps.size(),
                                .inner = inner,
                                .dtype = dtype});
}

// x [n, height, width, channels] of any floating dtype -> y [n, rows.size(), columns.size(), channels] of f32.
void run_both(const Taps& rows, const Taps& columns, const void* x, DType dtype, float* y, int64_t n, int64_t height,
              int64_t width, int64_t channels, Device device) {
  Tensor half = Tensor::empty({n, rows.size(), width, channels}, DType::f32, device);
  run_axis(rows, x, dtype, half.data<float>(), n, height, width * channels, device);
  run_axis(columns, half.raw(), DType::f32, y, n * rows.size(), width, channels, device);
}

Tensor as_f32(const Tensor& x) {
  Tensor t = x.detach();
  return t.dtype() == DType::f32 ? contiguous(t) : cast(t, DType::f32);
}

int64_t root(int64_t n) {
  auto side = int64_t(std::sqrt(double(n)));
  while (side * side > n) side--;
  while ((side + 1) * (side + 1) <= n) side++;
  return side;
}

// [height * width (+1), C] -> [rows.size() * columns.size() (+1), C]; the row before the grid is copied.
Tensor run_grid(const Tensor& table, const Taps& rows, const Taps& columns, int64_t height, int64_t width,
                int64_t cls) {
  int64_t channels = table.size(1);
  Device device = table.device();
  Tensor x = as_f32(table), y = Tensor::empty({rows.size() * columns.size() + cls, channels}, DType::f32, device);
  if (cls > 0) copy_into(slice(y, 0, 0, cls), slice(x, 0, 0, cls));
  run_both(rows, columns, x.data<float>() + cls * channels, DType::f32, y.data<float>() + cls * channels, 1, height,
           width, channels, device);
  return table.dtype() == DType::f32 ? y : cast(y, table.dtype());
}

// Side of the square grid of a table, and whether a cls row leads it.
std::pair<int64_t, int64_t> grid_of(const Tensor& table) {
  check<ShapeError>(table.ndim() == 2 && table.size(0) > 0, "[resample_table] table must be [rows, C] but has shape ",
                    table.shape());
  check<DTypeError>(is_float(table.dtype()), "[resample_table] table must be floating but is ", table.dtype());
  int64_t rows = table.size(0), side = root(rows), cls = side * side == rows ? 0 : 1;
  check<ShapeError>(side * side + cls == rows, "[resample_table] the table must have S * S rows, or one more, but has ",
                    rows);
  return {side, cls};
}

void check_resize(const char* op, const Tensor& x, int64_t height, int64_t width) {
  check<ShapeError>(x.ndim() == 4, "[", op, "] x must be [N, H, W, C] but has shape ", x.shape());
  check<DTypeError>(is_float(x.dtype()), "[", op, "] x must be floating but is ", x.dtype());
  check<ShapeError>(x.size(1) > 0 && x.size(2) > 0, "[", op, "] x has no positions: its shape is ", x.shape());
  constexpr int64_t kMost = int64_t(1) << 24;  // f32 counts that far
  check<ValueError>(height > 0 && width > 0 && height < kMost && width < kMost, "[", op,
                    "] sizes must be in 1..2^24 but are ", height, " and ", width);
}

// First output of each source position, and the number of outputs at the end.
std::vector<int64_t> nearest_ranges(int64_t in, int64_t out) {
  std::vector<int64_t> begin;
  for (int64_t s = 0; s <= in; s++) begin.push_back((s * out + in - 1) / in);
  return begin;
}

Tensor run_nearest(const Kernel<ResizeNearestArgs>& kernel, const Tensor& x, const Shape& shape, const Shape& source,
                   int64_t height, int64_t width) {
  Device device = x.device();
  Tensor y = Tensor::empty(shape, x.dtype(), device);
  std::vector<int64_t> row_list = nearest_ranges(source[1], height), column_list = nearest_ranges(source[2], width);
  Uploaded rows(row_list, device), columns(column_list, device);
  kernel(device, {.x = x.raw(),
                  .y = y.raw(),
                  .rows = rows.data(),
                  .columns = columns.data(),
                  .n = source[0],
                  .height = source[1],
                  .width = source[2],
                  .out_height = height,
                  .out_width = width,
                  .channels = source[3],
                  .dtype = x.dtype()});
  return y;
}

}  // namespace

Tensor resample_table(const Tensor& table, int64_t target) {
  auto [side, cls] = grid_of(table);
  int64_t target_side = target > cls ? root(target - cls) : 0;
  check<ShapeError>(target_side > 0 && target_side * target_side + cls == target,
                    "[resample_table] target must be T * T", cls ? " + 1 like the table's count of rows" : "",
                    " but is ", target);
  return resample_grid(table, target_side, target_side);
}

Tensor resample_grid(const Tensor& table, int64_t height, int64_t width) {
  auto [side, cls] = grid_of(table);
  constexpr int64_t kMost = int64_t(1) << 24;  // f32 counts that far
  check<ValueError>(height > 0 && width > 0 && height < kMost && width < kMost,
                    "[resample_grid] sizes must be in 1..2^24 but are ", height, " and ", width);
  if (height == side && width == side) return table;
  Taps rows = bicubic_taps(side, height), columns = bicubic_taps(side, width);
  Tensor y = run_grid(table, rows, columns, side, side, cls);
  return record("resample_grid", y, {table},
                [rows, columns, height, width, side = side, cls = cls](const Tensor& dy, Needs) -> Tensors {
                  return {run_grid(dy, transpose(rows, side), transpose(columns, side), height, width, cls)};
                });
}

Tensor resize_bilinear(const Tensor& x, int64_t height, int64_t width) {
  check_resize("resize_bilinear", x, height, width);
  Tensor from = contiguous(x.detach()),
         y = Tensor::empty({x.size(0), height, width, x.size(3)}, DType::f32, x.device());
  run_both(bilinear_taps(x.size(1), height), bilinear_taps(x.size(2), width), from.raw(), from.dtype(), y.data<float>(),
           x.size(0), x.size(1), x.size(2), x.size(3), x.device());
  return no_gradient("resize_bilinear", x.dtype() == DType::f32 ? y : cast(y, x.dtype()), {x});
}

// y[i] = x[floor(i * in / out)] on both axes; the gradient of a source is the sum over the outputs that show it.
Tensor resize_nearest(const Tensor& x_in, int64_t height, int64_t width) {
  check_resize("resize_nearest", x_in, height, width);
  Tensor x = contiguous(x_in);
  Shape source = x.shape();
  Tensor y = run_nearest(resize_nearest_kernel, x, {source[0], height, width, source[3]}, source, height, width);
  return record("resize_nearest", y, {x}, [=](const Tensor& dy, Needs) -> Tensors {
    return {run_nearest(resize_nearest_backward_kernel, dy, source, source, height, width)};
  });
}

}  // namespace deem
