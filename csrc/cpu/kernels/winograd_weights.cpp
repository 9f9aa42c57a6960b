// The transpose of winograd.cpp: G^T [sum over tiles of (A dy A^T) (B^T d B)^T] G. A chunk of tiles is transformed by all threads; then each
// multiplies its part of the 16 matrices [out, in].
#include "core/memory.h"
#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/winograd_tiles.h"
#include "cpu/winograd.h"

namespace deem::DEEM_ISA {

constexpr int64_t kChunk = 256;  // tiles
constexpr int64_t kTaken = 16;   // tiles that a thread takes at a time

struct Plan {
  const WinogradWeightsArgs& a;
  const Tiles tiles;
  int64_t height, panels_a, panels_b;  // of output channels, `height` a panel, and of input channels
  int64_t chunk;                       // tiles, at most
  int64_t a_point, b_point, m_point;   // from one of the 16 points to the next
  float *dy, *x, *m;  // [point, panel, chunk, kRowSpan], [point, panel, chunk, kCols]; [point, panel, panel, kTile]

  DEEM_INLINE explicit Plan(const WinogradWeightsArgs& a) : a(a), tiles(a.s) {}
};

static Plan plan_of(const WinogradWeightsArgs& a) {
  Plan p(a);
  p.panels_a = ceil_div(a.s.out, kRows), p.panels_b = ceil_div(a.s.in, kCols);
  p.height = ceil_div(a.s.out, p.panels_a);
  p.panels_a = ceil_div(a.s.out, p.height);
  p.chunk = min(p.tiles.count, kChunk);
  p.a_point = p.panels_a * p.chunk * kRowSpan + kGap;
  p.b_point = p.panels_b * p.chunk * kCols + kGap;
  p.m_point = p.panels_a * p.panels_b * kTile + kGap;
  return p;
}

// A dy A^T of a tile, number `at` of the chunk.
template <class T>
static void transform_gradient(const Plan& p, int64_t tile, int64_t at) {
  const ConvSizes& s = p.a.s;
  const int64_t y = p.tiles.y(tile), x = p.tiles.x(tile);
  const bool below = y + 1 < s.oh, right = x + 1 < s.ow;
  const T* dy = (const T*)p.a.dy + ((p.tiles.image(tile) * s.oh + y) * s.ow + x) * s.out;
  for (int64_t i = 0; i < p.panels_a; i++)
    for (int64_t line = 0; line < p.height; line += kLanes) {
      const int64_t channel = i * p.height + line, count = min(kLanes, s.out - channel);
      auto get = [&](bool inside, int64_t offset) __attribute__((always_inline)) {
        const T* from = dy + offset * s.out + channel;
        return !inside ? Vec{} : count == kLanes ? load_vec(from) : load_part(from, count);
      };
      const Vec g[kOutSide][kOutSide] = {{get(true, 0), get(right, 1)},
                                         {get(below, s.ow), get(below && right, s.ow + 1)}};
      Vec t[kSide][kOutSide];
      for (int j = 0; j < kOutSide; j++)
        t[0][j] = g[0][j], t[1][j] = g[0][j] + g[1][j], t[2][j] = g[0][j] - g[1][j], t[3][j] = -g[1][j];
      float* to = p.dy + (i * p.chunk + at) * kRowSpan + line;
#pragma GCC unroll 4
      for (int k = 0; k < kSide; k++, to += kSide * p.a_point) {
        store_vec(to, t[k][0]), store_vec(to + p.a_point, t[k][0] + t[k][1]);
        store_vec(to + 2 * p.a_point, t[k][0] - t[k][1]), store_vec(to + 3 * p.a_point, -t[k][1]);
      }
    }
}

template <class T>
static void transform_picture(const Plan& p, int64_t tile, int64_t at) {
  const ConvSizes& s = p.a.s;
  const TilePicture<T> picture(s, p.tiles, tile, p.a.x);
  for (int64_t c = 0; c < s.in; c += kLanes) {
    float* to = p.x + (c / kCols * p.chunk + at) * kCols + c % kCols;
    picture.transform(c, [&](int point, Vec x) { store_vec(to + point * p.b_point, x); });
  }
}

// Panels of one point of the sum.
static void multiply(const Plan& p, int64_t point, int64_t i, int64_t tiles, bool first) {
  const int64_t rows = min(p.height, p.a.s.out - i * p.height);
  for (int64_t j = 0; j < p.panels_b; j++) {
    float* m = p.m + point * p.m_point + (i * p.panels_b + j) * kTile;
    tile_of<Rows::by_number>(rows, p.a.s.in - j * kCols)(tiles, p.dy + point * p.a_point + i * p.chunk * kRowSpan,
                                                         p.x + point * p.b_point + j * p.chunk * kCols,
                                                         first ? nullptr : m, kCols, m, kCols);
  }
}

// G^T m G of one output channel.
template <class T>
static void transform_sums(const Plan& p, int64_t out) {
  const ConvSizes& s = p.a.s;
  for (int64_t c = 0; c < s.in; c += kLanes) {
    const float* from = p.m + (out / p.height * p.panels_b + c / kCols) * kTile + out % p.height * kCols + c % kCols;
    Vec t[3][kSide];
#pragma GCC unroll 4
    for (int j = 0; j < kSide; j++) {
      Vec e[kSide];
      for (int i = 0; i < kSide; i++) e[i] = load_vec(from + (i * kSide + j) * p.m_point);
      const Vec sum = 0.5f * (e[1] + e[2]), difference = 0.5f * (e[1] - e[2]);
      t[0][j] = e[0] + sum, t[1][j] = difference, t[2][j] = sum + e[3];
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) {
      const Vec sum = 0.5f * (t[i][1] + t[i][2]);
      const Vec taps[3] = {t[i][0] + sum, 0.5f * (t[i][1] - t[i][2]), sum + t[i][3]};
      for (int j = 0; j < 3; j++) store_part((T*)p.a.dweight + (out * 9 + i * 3 + j) * s.in + c, taps[j], kLanes);
    }
  }
}

static void winograd_weights(const WinogradWeightsArgs& a) {
  Plan p = plan_of(a);
  const size_t bytes = scratch_size(size_t(kPoints * (p.a_point + p.b_point + p.m_point)) * sizeof(float));
  p.dy = (float*)allocate(bytes);
  p.x = p.dy + kPoints * p.a_point, p.m = p.x + kPoints * p.b_point;
  dispatch_float(a.s.dtype, "conv2d", [&]<class T>(T) {
    const int64_t threads = num_threads(), units = kPoints * p.panels_a;
    for (int64_t first = 0; first < p.tiles.count; first += p.chunk) {
      const int64_t count = min(p.chunk, p.tiles.count - first);
      parallel_phases(
          threads, ceil_div(count, kTaken),
          [&](int64_t part, int64_t) {
            for (int64_t i = part * kTaken; i < min(count, (part + 1) * kTaken); i++) {
              transform_gradient<T>(p, first + i, i);
              transform_picture<T>(p, first + i, i);
            }
          },
          units, [&](int64_t i, int64_t) { multiply(p, i / p.panels_a, i % p.panels_a, count, first == 0); });
    }
    parallel_for(a.s.out, a.s.in * 40, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; o++) transform_sums<T>(p, o);
    });
  });
  release(p.dy, bytes);
}

static const Register r{winograd_weights_kernel, Device::cpu, winograd_weights};

}  // namespace deem::DEEM_ISA
