// Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), F(2 x 2, 3 x 3): a tile of 2 x 2 results comes from 4 x 4
// numbers d of the picture as A^T [(G g G^T) . (B^T d B)] A, where the products of the 16 points, summed over the channels, are matrix
// products. G halves, so small whole numbers stay exact; the sums before and after cost about one bit.
#pragma once
#include "cpu/simd.h"
#include "ops/conv.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

constexpr int kSide = 4, kPoints = kSide * kSide, kOutSide = 2;
// Points do not lie a power of two apart, where a cache could hold only a few of them.
constexpr int64_t kGap = 16;

struct Tiles {
  int64_t rows, cols, count;  // in a picture; in all pictures

  DEEM_INLINE explicit Tiles(const ConvSizes& s)
      : rows(ceil_div(s.oh, kOutSide)), cols(ceil_div(s.ow, kOutSide)), count(s.n * rows * cols) {}
  DEEM_INLINE int64_t image(int64_t tile) const { return tile / (rows * cols); }
  // Of its first result.
  DEEM_INLINE int64_t y(int64_t tile) const { return tile / cols % rows * kOutSide; }
  DEEM_INLINE int64_t x(int64_t tile) const { return tile % cols * kOutSide; }
};

// The numbers of the picture under a tile: channel 0 of each, null outside.
template <class T>
struct TilePicture {
  const T* at[kSide][kSide];

  DEEM_INLINE TilePicture(const ConvSizes& s, const Tiles& tiles, int64_t tile, const void* x) {
    const int64_t top = tiles.y(tile) - s.pad_top, left = tiles.x(tile) - s.pad_left;
    const T* image = (const T*)x + tiles.image(tile) * s.h * s.w * s.in;
    for (int i = 0; i < kSide; i++)
      for (int j = 0; j < kSide; j++) {
        const bool inside = top + i >= 0 && top + i < s.h && left + j >= 0 && left + j < s.w;
        at[i][j] = inside ? image + ((top + i) * s.w + left + j) * s.in : nullptr;
      }
  }
  // B^T d B of channels c..c + kLanes, point by point.
  template <class F>
  DEEM_INLINE void transform(int64_t c, F&& to) const {
    Vec d[kSide][kSide];
#pragma GCC unroll 4
    for (int j = 0; j < kSide; j++) {
      Vec e[kSide];
#pragma GCC unroll 4
      for (int i = 0; i < kSide; i++) e[i] = at[i][j] ? load_vec(at[i][j] + c) : Vec{};
      d[0][j] = e[0] - e[2], d[1][j] = e[1] + e[2], d[2][j] = e[2] - e[1], d[3][j] = e[1] - e[3];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kSide; i++) {
      to(i * kSide, d[i][0] - d[i][2]), to(i * kSide + 1, d[i][1] + d[i][2]);
      to(i * kSide + 2, d[i][2] - d[i][1]), to(i * kSide + 3, d[i][1] - d[i][3]);
    }
  }
};

}  // namespace deem::DEEM_ISA
#endif
