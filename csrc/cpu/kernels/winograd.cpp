// Input channels are taken in slices, whose transformed weights stay in the last cache. Of a slice, each thread takes blocks of tiles; of a
// block, the matrix products of all points of a group of output channels wait for their transformation in the second-level cache. Where there are fewer
// tiles than output channels, the whole picture is transformed first, and each thread takes groups of output channels, whose transformed
// weights never leave its second-level cache. Where the machine multiplies bf16, transformed numbers of that type are rounded to it and lie in
// pairs of neighbouring channels: depths count the slots of a panel (gemm_tile.h).
#include "cpu/winograd.h"

#include "core/memory.h"
#include "cpu/kernels/gemm_pack.h"
#include "cpu/kernels/gemm_tile.h"
#include "cpu/kernels/winograd_tiles.h"

namespace deem::DEEM_ISA {

template <class W>
constexpr int64_t kBlock = 2016 / W::kPoints / kRows;  // panels of tiles of a block
constexpr int64_t kGroup = 64 / kCols;  // panels of output channels whose products wait for their transformation
constexpr int64_t kDepth = 512;         // of a slice, at most
constexpr int64_t kRun = 128;           // of a sum, before it is added to the others: long sums round less in runs
constexpr int64_t kWeights = 1 << 22;   // transformed weights of a slice, about
template <class W>
constexpr int64_t kFewTiles = 4800 / W::kPoints;  // at most, where the picture is transformed whole
constexpr int64_t kFewGroup = 32 / kCols;         // there, panels of output channels of a task
template <class W>
constexpr int64_t kFewDepth = 2048 / W::kPoints;  // there, depth of a slice

template <class W>
struct Plan {
  const WinogradArgs& a;
  const Tiles<W> tiles;
  bool few;                           // tiles
  int64_t height, panels, panels_b;   // of tiles, `height` a panel, and of output channels
  int64_t blocks, block;              // block: panels, at most
  int64_t in;                         // depth of the whole
  int64_t slice, begin = 0, depth;    // slots begin..begin + depth are at work, of a slice
  int64_t u_point, v_point, m_point;  // from one point to the next
  float* u;                           // transformed weights [point, panel, depth, kCols]
  float* v;                           // of few tiles: the transformed picture [slice, point, panel, depth, kRows]
  float* bias;                        // [panels_b * kCols]
  float* sums;                        // like y, of the slices before; y itself where that is f32

  DEEM_INLINE explicit Plan(const WinogradArgs& a) : a(a), tiles(a.s) {}
};

template <class W>
static Plan<W> plan_of(const WinogradArgs& a, int64_t per_slot, int64_t threads) {
  const ConvSizes& s = a.s;
  Plan<W> p(a);
  p.in = s.in / per_slot;
  p.few = p.tiles.count <= kFewTiles<W> && 2 * p.tiles.count <= s.out;
  p.panels = ceil_div(p.tiles.count, kRows), p.panels_b = ceil_div(s.out, kCols);
  p.height = p.few ? ceil_div(p.tiles.count, p.panels) : kRows;
  p.blocks = p.few ? 1 : min(p.panels, ceil_div(ceil_div(p.panels, kBlock<W>), threads) * threads);
  p.block = ceil_div(p.panels, p.blocks);
  const int64_t most =
      p.few ? kFewDepth<W> : max<int64_t>(128, min(kDepth, kWeights / (W::kPoints * p.panels_b * kCols)));
  p.slice = whole_lanes(ceil_div(p.in, ceil_div(p.in, most)));
  p.u_point = (p.few ? kFewGroup : p.panels_b) * p.slice * kCols + kGap;
  p.v_point = p.block * p.slice * kRows + kGap;
  p.m_point = p.block * kGroup * kTile + kGap;
  return p;
}

// ---- transformations ------------------------------------------------------------------------------------------------

// kLanes slots of kLanes * kPerSlot<S> neighbours.
template <Slot S>
DEEM_INLINE Vec neighbours(const Vec (&x)[kPerSlot<S>]) {
#if DEEM_ISA_INDEX >= 3
  if constexpr (S == Slot::pair) return (Vec)_mm512_cvtne2ps_pbh((__m512)x[1], (__m512)x[0]);
#endif
  return x[0];
}

// kLanes slots of as many numbers of each x.
template <Slot S>
DEEM_INLINE Vec interleaved(const Vec (&x)[kPerSlot<S>]) {
#if DEEM_ISA_INDEX >= 3
  if constexpr (S == Slot::pair) {
    alignas(64) static constexpr auto order = [] {
      struct {
        int16_t at[32];
      } o{};
      for (int i = 0; i < 32; i++) o.at[i] = int16_t(i % 2 * 16 + i / 2);
      return o;
    }();
    return (Vec)_mm512_permutexvar_epi16(_mm512_load_si512(&order), (__m512i)neighbours<S>(x));
  }
#endif
  return x[0];
}

// Of panel j of output channels, slots c..c + kLanes. Taps are turned over before they are transformed: there are fewer of them than points.
template <class W, class T, Slot S>
static void transform_weights(const Plan<W>& p, int64_t j, int64_t c, float* u) {
  constexpr int kPer = kPerSlot<S>, kChannels = kPer * kLanes;
  const ConvSizes s = p.a.s;
  const int64_t u_point = p.u_point;
  for (int64_t v = 0; v < kVecs; v++) {
    const int64_t first = j * kCols + v * kLanes, count = max<int64_t>(0, min(kLanes, s.out - first));
    Vec taps[9][kChannels];  // of each input channel: of kLanes output channels
    if (p.a.back) {
      const T* w = (const T*)p.a.weight + c * kPer * 9 * s.out + first;
      for (int64_t i = 0; i < kChannels; i++)
        for (int t = 0; t < 9; t++, w += s.out) {
          taps[8 - t][i] = load_part(w, count);
          if (v == 0) __builtin_prefetch(w + kChannels * 9 * s.out, 0, 2);
        }
    } else {
      for (int t = 0; t < 9; t++)
        for (int h = 0; h < kPer; h++) {
          const T* w = (const T*)p.a.weight + (first * 9 + t) * s.in + c * kPer + h * kLanes;
          Vec square[kLanes];
          for (int64_t i = 0; i < kLanes; i++) {
            square[i] = i < count ? load_vec(w + i * 9 * s.in) : Vec{};
            if (h == 0)
              __builtin_prefetch(w + i * 9 * s.in + kChannels, 0, 2);  // of 144 rows at once: to the second level
          }
          transpose(square);
          for (int64_t i = 0; i < kLanes; i++) taps[t][h * kLanes + i] = square[i];
        }
    }
    for (int64_t i = 0; i < kLanes; i++) {
      Vec of_slot[W::kPoints][kPer];
      for (int h = 0; h < kPer; h++) {
        auto tap = [&](int y, int x) DEEM_ALWAYS { return taps[y * 3 + x][i * kPer + h]; };
        auto by = [](const Vec(&d)[3], Vec(&t)[W::kSide]) DEEM_ALWAYS { W::taps(d, t); };
        both_ways<3, W::kSide>(tap, by, [&](int y, int x, Vec v) DEEM_ALWAYS { of_slot[y * W::kSide + x][h] = v; });
      }
      float* to = u + i * kCols + v * kLanes;
#pragma GCC unroll 36
      for (int point = 0; point < W::kPoints; point++) store_vec(to + point * u_point, interleaved<S>(of_slot[point]));
    }
  }
}

// Slots begin..begin + depth of a tile, to its line of a panel (gemm_tile.h), for every point.
template <class W, class T, Slot S>
DEEM_INLINE void transform_tile(const Plan<W>& p, int64_t tile, int64_t begin, int64_t depth, float* to) {
  const TilePicture<W, T> picture(p.a.s, p.tiles, tile, p.a.x);
  for (int64_t c = begin; c < begin + depth; c += kLanes, to += kRows * kLanes) {
    Vec of_slot[W::kPoints][kPerSlot<S>];
#pragma GCC unroll 2
    for (int h = 0; h < kPerSlot<S>; h++)
      picture.transform(c * kPerSlot<S> + h * kLanes, [&](int point, Vec x) DEEM_ALWAYS { of_slot[point][h] = x; });
#pragma GCC unroll 36
    for (int point = 0; point < W::kPoints; point++) store_vec(to + point * p.v_point, neighbours<S>(of_slot[point]));
  }
}

// A^T m A of `count` tiles from `first` on, in panels j..j + group of output channels.
template <class W, class T>
static void transform_products(const Plan<W>& p, int64_t first, int64_t count, int64_t j, int64_t group,
                               const float* m) {
  const ConvSizes& s = p.a.s;
  const bool first_slice = p.begin == 0, last_slice = p.begin + p.depth == p.in;
  for (int64_t at = 0; at < count; at++) {
    const int64_t tile = first + at, y = p.tiles.y(tile), x = p.tiles.x(tile);
    const int64_t corner = (p.tiles.image(tile) * s.oh + y) * s.ow + x;
    for (int64_t c = 0; c < group * kCols && j * kCols + c < s.out; c += kLanes) {
      const float* from = m + (at / p.height * kGroup + c / kCols) * kTile + at % p.height * kCols + c % kCols;
      const int64_t channel = j * kCols + c, lanes = min(kLanes, s.out - channel);
      const Vec start = first_slice ? load_vec(p.bias + channel) : Vec{};
      auto sum = [&](int i, int k) DEEM_ALWAYS { return load_vec(from + (i * W::kSide + k) * p.m_point); };
      auto by = [](const Vec(&m)[W::kSide], Vec(&r)[W::kOut]) DEEM_ALWAYS { W::results(m, r); };
      both_ways<W::kSide, W::kOut>(sum, by, [&](int i, int k, Vec v) DEEM_ALWAYS {
        if (y + i >= s.oh || x + k >= s.ow) return;
        const int64_t to = (corner + i * s.ow + k) * s.out + channel;
        v += first_slice ? start : load_part(p.sums + to, lanes);
        if (last_slice) store_part((T*)p.a.y + to, v, lanes);
        else store_part(p.sums + to, v, lanes);
      });
    }
  }
}

// ---- products -------------------------------------------------------------------------------------------------------

// own: a v_point of each point, then of m_point.
template <class W, class T, Slot S>
static void convolve_block(const Plan<W>& p, int64_t index, float* own) {
  const int64_t begin = p.panels * index / p.blocks, panels = p.panels * (index + 1) / p.blocks - begin;
  const int64_t first = begin * kRows, count = min(panels * kRows, p.tiles.count - first);
  float *v = own, *m = own + W::kPoints * p.v_point;
  const ConvSizes& s = p.a.s;
  for (int64_t at = 0; at < count; at++)
    transform_tile<W, T, S>(p, first + at, p.begin, p.depth, v + at / kRows * p.depth * kRows + at % kRows * kLanes);
  for (int64_t j = 0; j < p.panels_b; j += kGroup) {
    const int64_t group = min(kGroup, p.panels_b - j);
    for (int64_t point = 0; point < W::kPoints; point++)
      for (int64_t g = 0; g < group; g++)
        for (int64_t i = 0; i < panels; i++) {
          const auto multiply =
              tile_of<Rows::by_line, S>(min<int64_t>(kRows, count - i * kRows), s.out - (j + g) * kCols);
          const float *lines = v + point * p.v_point + i * p.depth * kRows,
                      *taps = p.u + point * p.u_point + (j + g) * p.depth * kCols;
          float* sum = m + point * p.m_point + (i * kGroup + g) * kTile;
          for (int64_t c = 0; c < p.depth; c += kRun)
            multiply(min(kRun, p.depth - c), lines + c * kRows, taps + c * kCols, c == 0 ? nullptr : sum, kCols, sum,
                     kCols);
        }
    transform_products<W, T>(p, first, count, j, group, m);
  }
}

// Slices one after the other.
template <class W, class T, Slot S>
static void convolve_slices(Plan<W>& p, float* own, int64_t own_numbers, int64_t threads) {
  for (; p.begin < p.in; p.begin += p.depth) {
    p.depth = min(p.slice, p.in - p.begin);
    parallel_phases(
        threads, p.panels_b,
        [&](int64_t j, int64_t) {
          float* u = p.u + j * p.depth * kCols;
          for (int64_t c = 0; c < p.depth; c += kLanes) transform_weights<W, T, S>(p, j, p.begin + c, u + c * kCols);
        },
        p.blocks, [&](int64_t i, int64_t thread) { convolve_block<W, T, S>(p, i, own + thread * own_numbers); });
  }
}

// ---- few tiles ------------------------------------------------------------------------------------------------------

// Output channels of panels j..j + group, of all tiles. own: transformed weights of a slice, then an m_point of each point.
template <class W, class T, Slot S>
static void convolve_group(const Plan<W>& p, int64_t j, int64_t group, float* own) {
  const ConvSizes& s = p.a.s;
  float *u = own, *m = own + W::kPoints * p.u_point;
  for (int64_t begin = 0; begin < p.in; begin += p.slice) {
    const int64_t depth = min(p.slice, p.in - begin);
    const float* v = p.v + begin / p.slice * W::kPoints * p.v_point;
    for (int64_t g = 0; g < group; g++)
      for (int64_t c = 0; c < depth; c += kLanes)
        transform_weights<W, T, S>(p, j + g, begin + c, u + (g * depth + c) * kCols);
    for (int64_t point = 0; point < W::kPoints; point++)
      for (int64_t i = 0; i < p.panels; i++)
        for (int64_t g = 0; g < group; g++) {
          float* sum = m + point * p.m_point + (i * kGroup + g) * kTile;
          tile_of<Rows::by_line, S>(min(p.height, p.tiles.count - i * p.height), s.out - (j + g) * kCols)(
              depth, v + point * p.v_point + i * depth * kRows, u + point * p.u_point + g * depth * kCols,
              begin == 0 ? nullptr : sum, kCols, sum, kCols);
        }
  }
  transform_products<W, T>(p, 0, p.tiles.count, j, group, m);
}

template <class W, class T, Slot S>
static void convolve_few(Plan<W>& p, float* own, int64_t own_numbers, int64_t threads) {
  p.depth = p.in;  // sums are whole when they are transformed
  parallel_phases(
      threads, p.tiles.count,
      [&](int64_t tile, int64_t) {
        for (int64_t begin = 0; begin < p.in; begin += p.slice) {
          const int64_t depth = min(p.slice, p.in - begin), panel = tile / p.height, line = tile % p.height;
          transform_tile<W, T, S>(
              p, tile, begin, depth,
              p.v + begin / p.slice * W::kPoints * p.v_point + panel * depth * kRows + line * kLanes);
        }
      },
      ceil_div(p.panels_b, kFewGroup),
      [&](int64_t i, int64_t thread) {
        const int64_t j = i * kFewGroup;
        convolve_group<W, T, S>(p, j, min(kFewGroup, p.panels_b - j), own + thread * own_numbers);
      });
}

template <class W, class T, Slot S>
static void convolve(const WinogradArgs& a) {
  const int64_t threads = num_threads();
  Plan<W> p = plan_of<W>(a, kPerSlot<S>, threads);
  const int64_t padded = p.panels_b * kCols, slices = ceil_div(p.in, p.slice);
  const int64_t shared = W::kPoints * (p.few ? slices * p.v_point : p.u_point);
  const int64_t own = W::kPoints * ((p.few ? p.u_point : p.v_point) + p.m_point);
  const bool in_y = a.s.dtype == DType::f32 || p.few || slices == 1;
  const int64_t sums = in_y ? 0 : a.s.n * a.s.oh * a.s.ow * a.s.out;
  const size_t bytes = scratch_size(size_t(padded + shared + threads * own + sums) * sizeof(float));
  p.bias = (float*)allocate_scratch(bytes);
  p.u = p.v = p.bias + padded;
  p.sums = in_y ? (float*)a.y : p.u + shared + threads * own;
  clear(p.bias, padded);
  if (a.bias) convert_row((const T*)a.bias, a.s.out, p.bias);
  (p.few ? convolve_few<W, T, S> : convolve_slices<W, T, S>)(p, p.u + shared, own, threads);
  release(p.bias, bytes);
}

static void winograd(const WinogradArgs& a) {
#if DEEM_ISA_INDEX >= 3
  if (a.s.dtype == DType::bf16) return convolve<Tile2, bf16, Slot::pair>(a);
#endif
  dispatch_float(a.s.dtype, "conv2d", [&]<class T>(T) {
    a.side == 4 ? convolve<Tile4, T, Slot::number>(a) : convolve<Tile2, T, Slot::number>(a);
  });
}

static const Register r{winograd_kernel, Device::cpu, winograd};

}  // namespace deem::DEEM_ISA
