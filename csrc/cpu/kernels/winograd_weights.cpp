// The transpose of winograd.cpp: G^T [sum over tiles of (A dy A^T) (B^T d B)^T] G. A chunk of tiles is transformed by all threads; then each
// multiplies its part of the points' matrices [out, in].
#include "core/memory.h"
#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/winograd_tiles.h"
#include "cpu/winograd.h"

namespace deem::DEEM_ISA {

constexpr int64_t kChunk = 256;  // tiles
constexpr int64_t kTaken = 16;   // tiles that a thread takes at a time

template <class W>
struct Plan {
  const WinogradWeightsArgs& a;
  const Tiles<W> tiles;
  int64_t height, panels_a, panels_b;  // of output channels, `height` a panel, and of input channels
  int64_t chunk;                       // tiles, at most
  int64_t a_point, b_point, m_point;   // from one point to the next
  float *dy, *x, *m;  // [point, panel, chunk, kRowSpan], [point, panel, chunk, kCols]; [point, panel, panel, kTile]

  DEEM_INLINE explicit Plan(const WinogradWeightsArgs& a) : a(a), tiles(a.s) {}
};

template <class W>
static Plan<W> plan_of(const WinogradWeightsArgs& a) {
  Plan<W> p(a);
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
template <class W, class T>
static void transform_gradient(const Plan<W>& p, int64_t tile, int64_t at) {
  const ConvSizes& s = p.a.s;
  const int64_t y = p.tiles.y(tile), x = p.tiles.x(tile);
  const T* dy = (const T*)p.a.dy + ((p.tiles.image(tile) * s.oh + y) * s.ow + x) * s.out;
  for (int64_t panel = 0; panel < p.panels_a; panel++)
    for (int64_t line = 0; line < p.height; line += kLanes) {
      const int64_t channel = panel * p.height + line, count = min(kLanes, s.out - channel);
      float* to = p.dy + (panel * p.chunk + at) * kRowSpan + line;
      auto from = [&](int i, int j) DEEM_ALWAYS {
        const T* g = dy + (i * s.ow + j) * s.out + channel;
        const bool inside = y + i < s.oh && x + j < s.ow;
        return !inside ? Vec{} : count == kLanes ? load_vec(g) : load_part(g, count);
      };
      auto by = [](const Vec(&g)[W::kOut], Vec(&t)[W::kSide]) DEEM_ALWAYS { W::gradient(g, t); };
      both_ways<W::kOut, W::kSide>(
          from, by, [&](int i, int j, Vec v) DEEM_ALWAYS { store_vec(to + (i * W::kSide + j) * p.a_point, v); });
    }
}

template <class W, class T>
static void transform_picture(const Plan<W>& p, int64_t tile, int64_t at) {
  const ConvSizes& s = p.a.s;
  const TilePicture<W, T> picture(s, p.tiles, tile, p.a.x);
  for (int64_t c = 0; c < s.in; c += kLanes) {
    float* to = p.x + (c / kCols * p.chunk + at) * kCols + c % kCols;
    picture.transform(c, [&](int point, Vec x) DEEM_ALWAYS { store_vec(to + point * p.b_point, x); });
  }
}

// Panels of one point of the sum.
template <class W>
static void multiply(const Plan<W>& p, int64_t point, int64_t i, int64_t tiles, bool first) {
  const int64_t rows = min(p.height, p.a.s.out - i * p.height);
  for (int64_t j = 0; j < p.panels_b; j++) {
    float* m = p.m + point * p.m_point + (i * p.panels_b + j) * kTile;
    tile_of<Rows::by_number>(rows, p.a.s.in - j * kCols)(tiles, p.dy + point * p.a_point + i * p.chunk * kRowSpan,
                                                         p.x + point * p.b_point + j * p.chunk * kCols,
                                                         first ? nullptr : m, kCols, m, kCols);
  }
}

// G^T m G of one output channel.
template <class W, class T>
static void transform_sums(const Plan<W>& p, int64_t out) {
  const ConvSizes& s = p.a.s;
  for (int64_t c = 0; c < s.in; c += kLanes) {
    const float* from = p.m + (out / p.height * p.panels_b + c / kCols) * kTile + out % p.height * kCols + c % kCols;
    auto sum = [&](int i, int j) DEEM_ALWAYS { return load_vec(from + (i * W::kSide + j) * p.m_point); };
    auto by = [](const Vec(&m)[W::kSide], Vec(&g)[3]) DEEM_ALWAYS { W::sums(m, g); };
    both_ways<W::kSide, 3>(sum, by, [&](int i, int j, Vec tap) DEEM_ALWAYS {
      store_part((T*)p.a.dweight + (out * 9 + i * 3 + j) * s.in + c, tap, kLanes);
    });
  }
}

template <class W>
static void weights_of(const WinogradWeightsArgs& a) {
  Plan<W> p = plan_of<W>(a);
  const size_t bytes = scratch_size(size_t(W::kPoints * (p.a_point + p.b_point + p.m_point)) * sizeof(float));
  p.dy = (float*)allocate_scratch(bytes);
  p.x = p.dy + W::kPoints * p.a_point, p.m = p.x + W::kPoints * p.b_point;
  dispatch_float(a.s.dtype, "conv2d", [&]<class T>(T) {
    const int64_t threads = num_threads(), units = W::kPoints * p.panels_a;
    for (int64_t first = 0; first < p.tiles.count; first += p.chunk) {
      const int64_t count = min(p.chunk, p.tiles.count - first);
      parallel_phases(
          threads, ceil_div(count, kTaken),
          [&](int64_t part, int64_t) {
            for (int64_t i = part * kTaken; i < min(count, (part + 1) * kTaken); i++) {
              transform_gradient<W, T>(p, first + i, i);
              transform_picture<W, T>(p, first + i, i);
            }
          },
          units, [&](int64_t i, int64_t) { multiply(p, i / p.panels_a, i % p.panels_a, count, first == 0); });
    }
    parallel_for(a.s.out, a.s.in * 40, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; o++) transform_sums<W, T>(p, o);
    });
  });
  release(p.dy, bytes);
}

static void winograd_weights(const WinogradWeightsArgs& a) {
  a.side == 4 ? weights_of<Tile4>(a) : weights_of<Tile2>(a);
}

static const Register r{winograd_weights_kernel, Device::cpu, winograd_weights};

}  // namespace deem::DEEM_ISA
