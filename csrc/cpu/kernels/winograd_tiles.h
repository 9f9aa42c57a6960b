// Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016): a tile of results comes from the numbers d of the picture under
// it as A^T [(G g G^T) . (B^T d B)] A, where the products of all points, summed over the channels, are matrix products.
#pragma once
#include "cpu/simd.h"
#include "ops/conv.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// Points do not lie a power of two apart, where a cache could hold only a few of them.
constexpr int64_t kGap = 16;

// F(2 x 2, 3 x 3). G halves, so small whole numbers stay exact; the sums before and after cost about one bit.
struct Tile2 {
  static constexpr int kOut = 2, kSide = 4, kPoints = kSide * kSide;

  // B^T d
  DEEM_INLINE static void picture(const Vec (&d)[kSide], Vec (&t)[kSide]) {
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
  }
  // G g
  DEEM_INLINE static void taps(const Vec (&g)[3], Vec (&t)[kSide]) {
    const Vec ends = 0.5f * (g[0] + g[2]), middle = 0.5f * g[1];
    t[0] = g[0], t[1] = ends + middle, t[2] = ends - middle, t[3] = g[2];
  }
  // A^T m
  DEEM_INLINE static void results(const Vec (&m)[kSide], Vec (&y)[kOut]) {
    y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
  }
  // A dy
  DEEM_INLINE static void gradient(const Vec (&y)[kOut], Vec (&t)[kSide]) {
    t[0] = y[0], t[1] = y[0] + y[1], t[2] = y[0] - y[1], t[3] = -y[1];
  }
  // G^T m
  DEEM_INLINE static void sums(const Vec (&m)[kSide], Vec (&g)[3]) {
    const Vec sum = 0.5f * (m[1] + m[2]);
    g[0] = m[0] + sum, g[1] = 0.5f * (m[1] - m[2]), g[2] = sum + m[3];
  }
};

// F(4 x 4, 3 x 3) with the points 0, 5/8, -5/8, 3/2, -3/2 and infinity: less than half of the rounding that the usual 0, 1, -1, 2, -2 cost; about
// 1e-6 of the result's size, where direct sums of f32 cost 2e-7 to 2e-6 (docs/performance.md). Toom and Cook: rows of B^T are the
// coefficients of the product of (x - q) over the other points q, those of G the powers of a point p over the product of p - q, those of
// A^T the powers of points.
struct Tile4 {
  static constexpr int kOut = 4, kSide = 6, kPoints = kSide * kSide;
  static constexpr float p = 0.625f, q = 1.5f, pp = p * p, qq = q * q;  // all exact, and so are their products
  static constexpr float kZero = 1 / (pp * qq), kP = 1 / (2 * pp * (pp - qq)), kQ = 1 / (2 * qq * (qq - pp));

  DEEM_INLINE static void picture(const Vec (&d)[kSide], Vec (&t)[kSide]) {
    const Vec even_p = d[4] - qq * d[2], odd_p = p * (d[3] - qq * d[1]);
    const Vec even_q = d[4] - pp * d[2], odd_q = q * (d[3] - pp * d[1]);
    t[0] = (pp * qq) * d[0] - (pp + qq) * d[2] + d[4];
    t[1] = even_p + odd_p, t[2] = even_p - odd_p, t[3] = even_q + odd_q, t[4] = even_q - odd_q;
    t[5] = (pp * qq) * d[1] - (pp + qq) * d[3] + d[5];
  }
  DEEM_INLINE static void taps(const Vec (&g)[3], Vec (&t)[kSide]) {
    const Vec even_p = kP * g[0] + (kP * pp) * g[2], odd_p = (kP * p) * g[1];
    const Vec even_q = kQ * g[0] + (kQ * qq) * g[2], odd_q = (kQ * q) * g[1];
    t[0] = kZero * g[0], t[5] = g[2];
    t[1] = even_p + odd_p, t[2] = even_p - odd_p, t[3] = even_q + odd_q, t[4] = even_q - odd_q;
  }
  DEEM_INLINE static void results(const Vec (&m)[kSide], Vec (&y)[kOut]) {
    const Vec even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
    y[0] = m[0] + even_p + even_q, y[1] = p * odd_p + q * odd_q;
    y[2] = pp * even_p + qq * even_q, y[3] = (p * pp) * odd_p + (q * qq) * odd_q + m[5];
  }
  DEEM_INLINE static void gradient(const Vec (&y)[kOut], Vec (&t)[kSide]) {
    const Vec even_p = y[0] + pp * y[2], odd_p = p * (y[1] + pp * y[3]);
    const Vec even_q = y[0] + qq * y[2], odd_q = q * (y[1] + qq * y[3]);
    t[0] = y[0], t[5] = y[3];
    t[1] = even_p + odd_p, t[2] = even_p - odd_p, t[3] = even_q + odd_q, t[4] = even_q - odd_q;
  }
  DEEM_INLINE static void sums(const Vec (&m)[kSide], Vec (&g)[3]) {
    const Vec even_p = kP * (m[1] + m[2]), even_q = kQ * (m[3] + m[4]);
    g[0] = kZero * m[0] + even_p + even_q;
    g[1] = (kP * p) * (m[1] - m[2]) + (kQ * q) * (m[3] - m[4]);
    g[2] = pp * even_p + qq * even_q + m[5];
  }
};

// by(in, out) of each column of from(row, column), then of each row of what that gives: to(row, column, value).
template <int In, int Out, class From, class By, class To>
DEEM_INLINE void both_ways(From&& from, By&& by, To&& to) {
  Vec t[Out][In];
#pragma GCC unroll 6
  for (int j = 0; j < In; j++) {
    Vec column[In], done[Out];
#pragma GCC unroll 6
    for (int i = 0; i < In; i++) column[i] = from(i, j);
    by(column, done);
#pragma GCC unroll 6
    for (int i = 0; i < Out; i++) t[i][j] = done[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < Out; i++) {
    Vec done[Out];
    by(t[i], done);
#pragma GCC unroll 6
    for (int j = 0; j < Out; j++) to(i, j, done[j]);
  }
}

template <class W>
struct Tiles {
  int64_t rows, cols, count;  // in a picture; in all pictures

  DEEM_INLINE explicit Tiles(const ConvSizes& s)
      : rows(ceil_div(s.oh, W::kOut)), cols(ceil_div(s.ow, W::kOut)), count(s.n * rows * cols) {}
  DEEM_INLINE int64_t image(int64_t tile) const { return tile / (rows * cols); }
  // Of its first result.
  DEEM_INLINE int64_t y(int64_t tile) const { return tile / cols % rows * W::kOut; }
  DEEM_INLINE int64_t x(int64_t tile) const { return tile % cols * W::kOut; }
};

// The numbers of the picture under a tile: channel 0 of each, null outside.
template <class W, class T>
struct TilePicture {
  const T* at[W::kSide][W::kSide];

  DEEM_INLINE TilePicture(const ConvSizes& s, const Tiles<W>& tiles, int64_t tile, const void* x) {
    const int64_t top = tiles.y(tile) - s.pad_top, left = tiles.x(tile) - s.pad_left;
    const T* image = (const T*)x + tiles.image(tile) * s.h * s.w * s.in;
    for (int i = 0; i < W::kSide; i++)
      for (int j = 0; j < W::kSide; j++) {
        const bool inside = top + i >= 0 && top + i < s.h && left + j >= 0 && left + j < s.w;
        at[i][j] = inside ? image + ((top + i) * s.w + left + j) * s.in : nullptr;
      }
  }
  // B^T d B of channels c..c + kLanes, point by point.
  template <class F>
  DEEM_INLINE void transform(int64_t c, F&& to) const {
    auto from = [&](int i, int j) DEEM_ALWAYS { return at[i][j] ? load_vec(at[i][j] + c) : Vec{}; };
    auto by = [](const Vec(&d)[W::kSide], Vec(&t)[W::kSide]) DEEM_ALWAYS { W::picture(d, t); };
    both_ways<W::kSide, W::kSide>(from, by, [&](int i, int j, Vec x) DEEM_ALWAYS { to(i * W::kSide + j, x); });
  }
};

}  // namespace deem::DEEM_ISA
#endif
