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

// Samples of one image at pixels (x, y): the cell each lies in, found by locate().
struct Samples {
  float *x, *y;      // in: coordinates; out: the fractions inside the cell
  int32_t* row;      // of the cell's upper left corner; meaningless where that corner is outside
  int32_t* corners;  // which corners lie inside: bit 0 upper left, 1 upper right, 2 lower left, 3 lower right

  DEEM_INLINE Samples(SlotMemory& m, int64_t n)
      : x(m.take<float>(n)), y(m.take<float>(n)), row(m.take<int32_t>(n)), corners(m.take<int32_t>(n)) {}
};

// Samples [begin, end) lie in `level`. NaN and far coordinates fail the test, so the conversions to integers are safe.
DEEM_INLINE void locate(const Samples& s, int64_t begin, int64_t end, const DeformLevel& level) {
  const int32_t width = level.width, height = level.height, start = level.start;
#pragma omp simd
  for (int64_t i = begin; i < end; i++) {
    float x = s.x[i], y = s.y[i];
    bool inside = (x >= -1.0f) & (x < float(width)) & (y >= -1.0f) & (y < float(height));
    x = inside ? x : 0.0f;
    y = inside ? y : 0.0f;
    float left = std::floor(x), top = std::floor(y);
    int32_t column = int32_t(left), line = int32_t(top);
    int32_t columns = (column >= 0 ? 5 : 0) | (column + 1 < width ? 10 : 0);
    int32_t lines = (line >= 0 ? 3 : 0) | (line + 1 < height ? 12 : 0);
    s.x[i] = x - left;
    s.y[i] = y - top;
    s.row[i] = start + line * width + column;
    s.corners[i] = inside ? columns & lines : 0;
  }
}

// Rows to add up: every corner inside, with its bilinear weight times the sample's own.
struct Corners {
  int32_t* row;
  float* weight;

  DEEM_INLINE Corners(SlotMemory& m, int64_t samples)
      : row(m.take<int32_t>(4 * samples)), weight(m.take<float>(4 * samples)) {}
};

// Appends the corners of samples [begin, end) to the n in the list; returns the new count.
DEEM_INLINE int64_t list_corners(const Corners& c, int64_t n, const Samples& s, int64_t begin, int64_t end,
                                 const float* weight, int32_t width) {
  for (int64_t i = begin; i < end; i++) {
    float fx = s.x[i], fy = s.y[i], upper = weight[i] * (1.0f - fy), lower = weight[i] * fy;
    int32_t row = s.row[i], inside = s.corners[i];
    c.row[n] = row;
    c.weight[n] = upper * (1.0f - fx);
    n += inside & 1;
    c.row[n] = row + 1;
    c.weight[n] = upper * fx;
    n += inside >> 1 & 1;
    c.row[n] = row + width;
    c.weight[n] = lower * (1.0f - fx);
    n += inside >> 2 & 1;
    c.row[n] = row + width + 1;
    c.weight[n] = lower * fx;
    n += inside >> 3 & 1;
  }
  return n;
}

// y[0..W) += sum of weight[i] * value[row[i] * stride + 0..W). Narrow rows use several sums, to hide the latency of
// adding.
template <int W, class T>
static void gather_columns(const T* value, int64_t stride, const int32_t* row, const float* weight, int64_t n,
                           float* y) {
  constexpr int kSums = W > 16 ? 2 : 4;
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
  for (; c + 32 <= dim; c += 32) gather_columns<32>(value + c, stride, k.row, k.weight, n, y + c);
  if (c + 16 <= dim) gather_columns<16>(value + c, stride, k.row, k.weight, n, y + c), c += 16;
  if (c + 8 <= dim) gather_columns<8>(value + c, stride, k.row, k.weight, n, y + c), c += 8;
  if (c + 4 <= dim) gather_columns<4>(value + c, stride, k.row, k.weight, n, y + c), c += 4;
  if (c + 2 <= dim) gather_columns<2>(value + c, stride, k.row, k.weight, n, y + c), c += 2;
  if (c < dim) gather_columns<1>(value + c, stride, k.row, k.weight, n, y + c);
}

#define DEEM_LOAD(type, p) (*(const type*)(p))

// D is n, or 0 for any.
template <int D>
DEEM_INLINE float dot_product(const float* a, const float* b, int64_t n) {
  if constexpr (D == 4) {
    return add_lanes(DEEM_LOAD(F4, a) * DEEM_LOAD(F4, b));
  } else if constexpr (D == 8) {
    return add_lanes(DEEM_LOAD(F8, a) * DEEM_LOAD(F8, b));
  } else if constexpr (D != 0 && D % 16 == 0) {
    F16 sum = DEEM_LOAD(F16, a) * DEEM_LOAD(F16, b);
    for (int c = 16; c < D; c += 16) sum += DEEM_LOAD(F16, a + c) * DEEM_LOAD(F16, b + c);
    return add_lanes(sum);
  } else {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < n; i++) dot += a[i] * b[i];
    return dot;
  }
}

// The gradients through samples [begin, end) of a level: dvalue[corner] += weight * bilinear weight * dy, and d_weight, d_x,
// d_y: the sample's <value, dy> and its derivatives by the coordinates. Rows are `dim` wide and packed; D is dim, or 0 for
// any. On a pixel's centre the cell, and so the derivative, is that to its right and below.
template <int D>
static void scatter_samples(const Samples& s, int64_t begin, int64_t end, const float* weight, int32_t level_width,
                            const float* value, float* dvalue, const float* dy, int64_t dim, float* d_weight,
                            float* d_x, float* d_y) {
  const int64_t width = D ? D : dim;
  for (int64_t i = begin; i < end; i++) {
    const int32_t inside = s.corners[i];
    const float fx = s.x[i], fy = s.y[i], wx[2] = {1.0f - fx, fx}, wy[2] = {1.0f - fy, fy};
    float dots[4] = {};
    for (int k = 0; k < 4; k++) {
      if (!(inside >> k & 1)) continue;
      const int64_t at = (s.row[i] + (k & 1) + (k >> 1) * int64_t(level_width)) * width;
      const float* v = value + at;
      dots[k] = dot_product<D>(v, dy, width);
      if (!dvalue) continue;
      float *dv = dvalue + at, w = wx[k & 1] * wy[k >> 1] * weight[i];
#pragma omp simd
      for (int64_t c = 0; c < width; c++) dv[c] += w * dy[c];
    }
    float upper = wx[0] * dots[0] + wx[1] * dots[1], lower = wx[0] * dots[2] + wx[1] * dots[3];
    d_weight[i] = wy[0] * upper + wy[1] * lower;
    d_x[i] = wy[0] * (dots[1] - dots[0]) + wy[1] * (dots[3] - dots[2]);
    d_y[i] = lower - upper;
  }
}

using ScatterSamples = void (*)(const Samples&, int64_t, int64_t, const float*, int32_t, const float*, float*,
                                const float*, int64_t, float*, float*, float*);
DEEM_INLINE ScatterSamples scatter_for(int64_t dim) {
  switch (dim) {
    case 2: return scatter_samples<2>;
    case 4: return scatter_samples<4>;
    case 8: return scatter_samples<8>;
    case 16: return scatter_samples<16>;
    case 32: return scatter_samples<32>;
    case 64: return scatter_samples<64>;
    default: return scatter_samples<0>;
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
