// Bilinear samples of the deformable attentions: a warp to one head of one query. Lanes first find the cells of up to 32 samples,
// one each; then groups of lanes, each with a row's channels in packs of 16 bytes, take the samples in turn.
// Coordinates are pixels with centres at integers; corners outside the grid are skipped, so they contribute exactly nothing.
#pragma once
#include "cuda/rows.cuh"
#include "ops/deform_attn.h"

namespace deem::cuda {

constexpr int kQueryWarps = 4;  // of a block, each with a query's head
constexpr int kQueryThreads = kQueryWarps * 32;
constexpr uint32_t kNoCell = 0xffffffffu;

// Where a sample lies: the cell whose upper left corner is pixel (column, line), and the fractions inside it.
struct Cell {
  bool inside;
  int column, line;
  float x, y;
};

// NaN and far coordinates fail the test, so the conversions to integers are safe.
DEEM_DEVICE Cell locate(float x, float y, int width, int height) {
  if (!(x >= -1.0f && x < float(width) && y >= -1.0f && y < float(height))) return {false, 0, 0, 0, 0};
  const float left = floorf(x), top = floorf(y);
  return {true, int(left), int(top), x - left, y - top};
}

// Cells by number: from that at (-1, -1), width + 1 to a line; 32 bits hold levels below 2^31 positions and sides below 2^20.
DEEM_DEVICE uint32_t cell_index(const Cell& c, int width) {
  return c.inside ? uint32_t(c.line + 1) * uint32_t(width + 1) + uint32_t(c.column + 1) : kNoCell;
}
DEEM_DEVICE Cell cell_at(uint32_t index, float x, float y, int width) {
  const uint32_t line = index / uint32_t(width + 1);
  return {index != kNoCell, int(index - line * uint32_t(width + 1)) - 1, int(line) - 1, x, y};
}

// The corners' rows, -1 outside: upper left, upper right, lower left, lower right. `start`: what row 0 of the level counts as.
DEEM_DEVICE int4 corner_rows(const Cell& c, int width, int height, int start) {
  const bool left = c.column >= 0, right = c.column + 1 < width;
  const bool upper = c.inside && c.line >= 0, lower = c.inside && c.line + 1 < height;
  const int row = start + c.line * width + c.column;
  return make_int4(upper && left ? row : -1, upper && right ? row + 1 : -1, lower && left ? row + width : -1,
                   lower && right ? row + width + 1 : -1);
}

DEEM_DEVICE float4 corner_weights(const Cell& c, float weight) {
  const float upper = weight * (1.0f - c.y), lower = weight * c.y;
  return make_float4(upper * (1.0f - c.x), upper * c.x, lower * (1.0f - c.x), lower * c.x);
}

// The lanes of a warp as groups of `lanes`, a power of two: each group covers the packs of a head's row.
struct Lanes {
  int lanes, groups, group, lane;  // lane: in the group

  DEEM_DEVICE explicit Lanes(int packs) {
    lanes = 1;
    while (lanes < packs && lanes < 32) lanes *= 2;
    groups = 32 / lanes;
    group = int(threadIdx.x) % 32 / lanes;
    lane = int(threadIdx.x) % lanes;
  }
  // Sums over the lanes of each group.
  DEEM_DEVICE float sum(float v) const {
    for (int step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
  }
  // Sums over the groups, lane by lane.
  DEEM_DEVICE float sum_groups(float v) const {
    for (int step = lanes; step < 32; step *= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
  }
};

// sum[0..V) += weight * row's channels [0, V), for rows that are not -1.
template <class T, int V>
DEEM_DEVICE void add_row(const T* value, int64_t stride, int row, float weight, float (&sum)[V]) {
  if (row < 0) return;
  float v[V];
  load_float(value + row * stride, v);
#pragma unroll
  for (int i = 0; i < V; i++) sum[i] += weight * v[i];
}

template <class T, int V>
DEEM_DEVICE float row_dot(const T* value, int64_t stride, int row, const float (&dy)[V]) {
  if (row < 0) return 0;
  float v[V], dot = 0;
  load_float(value + row * stride, v);
#pragma unroll
  for (int i = 0; i < V; i++) dot += v[i] * dy[i];
  return dot;
}

// What a warp holds of up to 32 samples in shared memory.
struct Samples {
  int4 rows[32];
  float4 weights[32];  // of the corners; in the backward pass the <corner, dy>
};

// sum += the samples [0, count) of `samples`, as far as this lane's group takes them. `value` points at the lane's channels.
template <class T, int V>
DEEM_DEVICE void gather(const Samples& samples, int count, const Lanes& at, const T* value, int64_t stride,
                        float (&sum)[V]) {
#pragma unroll 2
  for (int i = at.group; i < count; i += at.groups) {
    const int4 rows = samples.rows[i];
    const float4 weights = samples.weights[i];
    add_row(value, stride, rows.x, weights.x, sum);
    add_row(value, stride, rows.y, weights.y, sum);
    add_row(value, stride, rows.z, weights.z, sum);
    add_row(value, stride, rows.w, weights.w, sum);
  }
}

// Replaces the weights of samples [0, count) by <corner, dy>, 0 outside. All lanes must call. `value` and `dy` point at the
// head's first channel; a head of more than 32 packs is taken in steps.
template <int V, class T>
DEEM_DEVICE void corner_dots(Samples& samples, int count, const Lanes& at, const T* value, int64_t stride, const T* dy,
                             int packs) {
  float first[V] = {};
  if (at.lane < packs) load_float(dy + at.lane * V, first);
  for (int base = 0; base < count; base += at.groups) {
    const int i = base + at.group;
    const int4 rows = i < count ? samples.rows[i] : make_int4(-1, -1, -1, -1);
    float4 dots = make_float4(0, 0, 0, 0);
    for (int pack = at.lane; pack < packs; pack += at.lanes) {
      const T* from = value + pack * V;
      float g[V];
      if (pack == at.lane) {
#pragma unroll
        for (int c = 0; c < V; c++) g[c] = first[c];
      } else {
        load_float(dy + pack * V, g);
      }
      dots.x += row_dot(from, stride, rows.x, g);
      dots.y += row_dot(from, stride, rows.y, g);
      dots.z += row_dot(from, stride, rows.z, g);
      dots.w += row_dot(from, stride, rows.w, g);
    }
    dots = make_float4(at.sum(dots.x), at.sum(dots.y), at.sum(dots.z), at.sum(dots.w));
    if (at.lane == 0 && i < count) samples.weights[i] = dots;
  }
}

// A sample's <value, dy> and its derivatives by the pixel's coordinates, of the dots of its corners. On a pixel's centre the
// cell, and so the derivative, is that to its right and below.
struct SampleGradient {
  float weight, x, y;
};
DEEM_DEVICE SampleGradient sample_gradient(const Cell& c, const float4& dots) {
  const float upper = (1.0f - c.x) * dots.x + c.x * dots.y, lower = (1.0f - c.x) * dots.z + c.x * dots.w;
  return {(1.0f - c.y) * upper + c.y * lower, (1.0f - c.y) * (dots.y - dots.x) + c.y * (dots.w - dots.z),
          lower - upper};
}

}  // namespace deem::cuda
