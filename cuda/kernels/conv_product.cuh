// Host side of the products: which tile, how many parts of the depth, and their sum.
#pragma once
#include <algorithm>
#include <limits>
#include <optional>

#include "cuda/kernels/conv_ffma.cuh"
#include "cuda/kernels/conv_mma.cuh"

namespace deem::cuda::conv {

// y = the sum over splits of partial [splits, count], in their order, + bias [cols].
template <class T>
__global__ void sum_splits_kernel(const float* partial, const T* bias, T* y, int64_t count, int cols, int splits) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    float sum = 0;
    for (int s = 0; s < splits; s++) sum += partial[s * count + i];
    y[i] = from_float<T>(bias ? sum + to_float(bias[i % cols]) : sum);
  }
}

// What decides about tiles: the output is m x n per residue, sums are `depth` long. All of it the shape's, so that sums are
// taken in the same order on every card.
struct Extent {
  int64_t m, n, depth, residues = 1;
  bool long_depth = false;  // weights: few outputs, sums over all pixels
  int64_t least_splits = 1;
};

constexpr int64_t kBlocks = 255;      // about two on each multiprocessor of the cards at hand
constexpr int64_t kLeastDepth = 256;  // a part of the depth shorter than this is not worth its partial sums

template <class Tile>
Tiles tiles_of(const Extent& e) {
  const int64_t m = (e.m + Tile::kM - 1) / Tile::kM, n = (e.n + Tile::kN - 1) / Tile::kN, all = m * n * e.residues;
  const int64_t splits =
      std::max(e.least_splits, std::clamp(kBlocks / all, int64_t(1), std::max<int64_t>(1, e.depth / kLeastDepth)));
  check<ShapeError>(all * splits <= std::numeric_limits<int32_t>::max(), "[conv2d] cuda takes at most 2^31 blocks");
  return {uint32_t(m), uint32_t(n), uint32_t(e.residues), uint32_t(splits)};
}

template <class Tile, bool WHOLE, class Problem>
void run_tiles(Problem p, const Extent& e) {
  using T = typename Problem::Type;
  p.tiles = tiles_of<Tile>(e);
  const int64_t count = p.out.rows * p.out.cols;
  std::optional<Scratch<float>> partial;
  if (p.tiles.splits > 1) p.out.partial = partial.emplace(count * p.tiles.splits).data();
  if constexpr (std::is_same_v<T, float>) launch_ffma<Problem, Tile, WHOLE>(p);
  else launch_mma<Problem, Tile, WHOLE>(p);
  if (p.tiles.splits > 1)
    DEEM_LAUNCH((sum_splits_kernel<T>), dim3(uint32_t(std::min<int64_t>((count + 255) / 256, 1 << 16))), dim3(256), 0,
                stream(), p.out.partial, p.out.bias, p.out.data, count, p.out.cols, int(p.tiles.splits));
}

template <class Problem>
void run_product(const Problem& p, const Extent& e) {
  using T = typename Problem::Type;
  constexpr bool kF32 = std::is_same_v<T, float>;
  using Small = std::conditional_t<kF32, FfmaTile<64, 64>, MmaTile<64, 64, 32, 32>>;
  using Large = std::conditional_t<kF32, FfmaTile<128, 64>, MmaTile<128, 128, 64, 32>>;
  const bool whole = p.a.grain == kVecWidth<T> && p.b.grain == kVecWidth<T>;
  if (!whole) return run_tiles<Small, false>(p, e);
  if constexpr (!kF32 && Problem::kFewColumns)
    if (e.n <= 32 && e.m >= 128) return run_tiles<MmaTile<128, 32, 32, 32>, true>(p, e);
  const int64_t large = ((e.m + Large::kM - 1) / Large::kM) * ((e.n + Large::kN - 1) / Large::kN) * e.residues;
  const bool wide = e.m > Large::kM / 2 && e.n > Large::kN / 2;
  if (wide && (large > kBlocks / 2 || e.long_depth)) return run_tiles<Large, true>(p, e);
  run_tiles<Small, true>(p, e);
}

// A map whose pixels form a grid of n x rows x columns.
template <class T>
Map<T> map_of(const void* data, int64_t n, int64_t h, int64_t w, int64_t c, int64_t rows, int64_t columns) {
  Map<T> m{};
  m.data = static_cast<const T*>(data);
  m.h = int(h), m.w = int(w), m.c = int(c), m.step = 1;
  m.per_image = Divisor(rows * columns);
  m.per_row = Divisor(columns);
  m.per_tap = Divisor(c);
  m.pixels = n * rows * columns;
  return m;
}

template <class T>
Output<T> output_of(void* data, const void* bias, int64_t rows, int64_t cols) {
  return {static_cast<T*>(data), static_cast<const T*>(bias), rows, int(cols), grain_of<T>(data, cols)};
}

}  // namespace deem::cuda::conv
