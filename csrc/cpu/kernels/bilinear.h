// Bilinear samples as lists of weighted rows, shared by the deformable attentions. Coordinates are pixels with centres
// at integers; corners outside the grid are left out of the list, so they contribute exactly nothing.
#pragma once
#include "cpu/simd.h"
#include "ops/deform_attn.h"

namespace deem::DEEM_ISA {

// What is left of a slot; take() hands out the next piece.
struct SlotMemory {
  float* next;
  template <class T>
  DEEM_INLINE T* take(int64_t n) {
    static_assert(sizeof(T) == sizeof(float));
    T* p = (T*)next;
    next += n;
    return p;
  }
};

struct Corners {
  int32_t* row;
  float* weight;  // forward: bilinear weight times the sample's own
  // backward only
  float *bare, *dx, *dy;  // the bilinear weight and its derivatives
  int32_t* point;         // the sample a corner belongs to

  DEEM_INLINE Corners(SlotMemory& m, int64_t samples, bool backward)
      : row(m.take<int32_t>(4 * samples)),
        weight(m.take<float>(4 * samples)),
        bare(nullptr),
        dx(nullptr),
        dy(nullptr),
        point(nullptr) {
    if (!backward) return;
    bare = m.take<float>(4 * samples);
    dx = m.take<float>(4 * samples);
    dy = m.take<float>(4 * samples);
    point = m.take<int32_t>(4 * samples);
  }
};

// Appends the corners of sample `point` at (x, y) to the n in the list; returns the new count. NaN and far coordinates
// fail the test, so the conversions to integers are safe. On the last pixel's centre the cell is the one to its right.
template <bool backward>
DEEM_INLINE int64_t add_corners(const Corners& c, int64_t n, float x, float y, const DeformLevel& level, float weight,
                                int32_t point) {
  if (!(x >= -1.0f && x < float(level.width) && y >= -1.0f && y < float(level.height))) return n;
  float left = std::floor(x), top = std::floor(y), fx = x - left, fy = y - top;
  int32_t column = int32_t(left), line = int32_t(top), row = level.start + line * level.width + column;
  for (int k = 0; k < 4; k++) {
    int right = k & 1, below = k >> 1;
    float wx = right ? fx : 1.0f - fx, wy = below ? fy : 1.0f - fy;
    c.row[n] = row + right + below * level.width;
    c.weight[n] = wx * wy * weight;
    if (backward) {
      c.bare[n] = wx * wy;
      c.dx[n] = right ? wy : -wy;
      c.dy[n] = below ? wx : -wx;
      c.point[n] = point;
    }
    n += (uint32_t(column + right) < uint32_t(level.width)) & (uint32_t(line + below) < uint32_t(level.height));
  }
  return n;
}

// y[0..W) += sum of weight[i] * value[row[i] * stride + 0..W). Narrow rows use several sums, to hide the latency of
// adding.
template <int W, class T>
static void gather_columns(const T* value, int64_t stride, const int32_t* row, const float* weight, int64_t n,
                           float* y) {
  constexpr int kSums = W > 16 ? 1 : 4;
  float sum[kSums][W] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int k = 0; k < kSums; k++) {
      const T* v = value + row[i + k] * stride;
      float w = weight[i + k];
#pragma omp simd
      for (int c = 0; c < W; c++) sum[k][c] += w * load(v + c);
    }
  for (; i < n; i++) {
    const T* v = value + row[i] * stride;
    float w = weight[i];
#pragma omp simd
    for (int c = 0; c < W; c++) sum[0][c] += w * load(v + c);
  }
  for (int k = 0; k < kSums; k++)
    for (int c = 0; c < W; c++) y[c] += sum[k][c];
}

template <class T>
DEEM_INLINE void gather_rows(const T* value, int64_t stride, const Corners& k, int64_t n, float* y, int64_t dim) {
  int64_t c = 0;
  for (; c + 64 <= dim; c += 64) gather_columns<64>(value + c, stride, k.row, k.weight, n, y + c);
  for (; c + 16 <= dim; c += 16) gather_columns<16>(value + c, stride, k.row, k.weight, n, y + c);
  if (c + 8 <= dim) gather_columns<8>(value + c, stride, k.row, k.weight, n, y + c), c += 8;
  if (c + 4 <= dim) gather_columns<4>(value + c, stride, k.row, k.weight, n, y + c), c += 4;
  if (c + 2 <= dim) gather_columns<2>(value + c, stride, k.row, k.weight, n, y + c), c += 2;
  if (c < dim) gather_columns<1>(value + c, stride, k.row, k.weight, n, y + c);
}

// The gradients through the corners of a list: dvalue[row] += weight * dy; for the corner's sample, d_weight, d_x and
// d_y gain bare, dx and dy times <value[row], dy>. Rows are `dim` wide and packed; D is dim, or 0 for any.
template <int D>
static void scatter_corners(const Corners& k, int64_t n, const float* value, float* dvalue, const float* dy,
                            int64_t dim, float* d_weight, float* d_x, float* d_y) {
  const int64_t width = D ? D : dim;
  for (int64_t i = 0; i < n; i++) {
    const float* v = value + k.row[i] * width;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < width; c++) dot += v[c] * dy[c];
    int32_t p = k.point[i];
    d_weight[p] += k.bare[i] * dot;
    d_x[p] += k.dx[i] * dot;
    d_y[p] += k.dy[i] * dot;
    if (!dvalue) continue;
    float *dv = dvalue + k.row[i] * width, w = k.weight[i];
#pragma omp simd
    for (int64_t c = 0; c < width; c++) dv[c] += w * dy[c];
  }
}

using ScatterCorners = void (*)(const Corners&, int64_t, const float*, float*, const float*, int64_t, float*, float*,
                                float*);
DEEM_INLINE ScatterCorners scatter_for(int64_t dim) {
  switch (dim) {
    case 2:
      return scatter_corners<2>;
    case 4:
      return scatter_corners<4>;
    case 8:
      return scatter_corners<8>;
    case 16:
      return scatter_corners<16>;
    case 32:
      return scatter_corners<32>;
    case 64:
      return scatter_corners<64>;
    default:
      return scatter_corners<0>;
  }
}

// Rows of one head to and from packed f32.
template <class T>
static void pack_rows(const T* from, int64_t stride, int64_t rows, int64_t dim, float* to) {
  for (int64_t r = 0; r < rows; r++)
#pragma omp simd
    for (int64_t c = 0; c < dim; c++) to[r * dim + c] = load(from + r * stride + c);
}
template <class T>
static void unpack_rows(const float* from, int64_t rows, int64_t dim, T* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
#pragma omp simd
    for (int64_t c = 0; c < dim; c++) store(to + r * stride + c, from[r * dim + c]);
}

}  // namespace deem::DEEM_ISA
