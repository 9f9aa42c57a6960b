// The products in bf16 and f16 on tensor cores: m16n8k16, sums in f32, one rounding.
#pragma once
#include "cuda/kernels/conv_problems.cuh"
#include "cuda/kernels/conv_tiles.cuh"

namespace deem::cuda::conv {

template <int M, int N, int WARP_M, int WARP_N>
struct MmaTile {
  static constexpr int kM = M, kN = N, kDepth = 32, kStages = 3;
  static constexpr int kWarpM = WARP_M, kWarpN = WARP_N, kWarpsN = N / WARP_N;
  static constexpr int kThreads = M / WARP_M * kWarpsN * 32;
  static constexpr int kOutRow = N + 8;  // elements; the pad spreads rows over the banks
};

// The fragments of 16 lines from `line` on and 16 depths from `depth` on, as four 8x8 matrices: for A in the order (lines low,
// depths low), (high, low), (low, high), (high, high); for B (LINES_LAST) the lines' halves change last.
template <class Loader, bool LINES_LAST>
DEEM_DEVICE void load_fragment(uint32_t (&r)[4], const typename Loader::Chunk* tile, int line, int depth) {
  const int lane = int(threadIdx.x) % 32, matrix = lane / 8;
  line += (LINES_LAST ? matrix / 2 : matrix % 2) * 8;
  depth += (LINES_LAST ? matrix % 2 : matrix / 2) * 8;
  if constexpr (Loader::kAlong) ldmatrix_x4(r, tile + Loader::Place::at(line + lane % 8, depth / 8));
  else ldmatrix_x4_trans(r, tile + Loader::Place::at(depth + lane % 8, line / 8));
}

template <class Problem, class Tile, bool WHOLE>
using LoaderA = TileLoader<decltype(Problem::a), Tile::kM, Tile::kDepth, Tile::kThreads, WHOLE, Swizzled>;
template <class Problem, class Tile, bool WHOLE>
using LoaderB = TileLoader<decltype(Problem::b), Tile::kN, Tile::kDepth, Tile::kThreads, WHOLE, Swizzled>;

template <class Problem, class Tile, bool WHOLE>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kThreads / 128) conv_mma_kernel(const Problem problem) {
  using T = typename Problem::Type;
  using A = LoaderA<Problem, Tile, WHOLE>;
  using B = LoaderB<Problem, Tile, WHOLE>;
  using Chunk = Vec<T, 8>;
  constexpr int MI = Tile::kWarpM / 16, NI = Tile::kWarpN / 8, kStage = A::kSize + B::kSize;
  DEEM_SHARED_DYN(Chunk, shared);

  Problem p = problem;
  const Place place = p.tiles.template place<Tile>(blockIdx.x);
  p.template start<Tile>(place);
  const A a(p.a);
  const B b(p.b);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int warp_m = warp / Tile::kWarpsN * Tile::kWarpM, warp_n = warp % Tile::kWarpsN * Tile::kWarpN;

  float sums[MI][NI][4] = {};
  auto load = [&](int step, int stage) {
    if (step < p.steps) {
      a.load(shared + stage * kStage, step * Tile::kDepth);
      b.load(shared + stage * kStage + A::kSize, step * Tile::kDepth);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < Tile::kStages - 1; s++) load(s, s);
  int stage = 0, next = Tile::kStages - 1;
#pragma unroll 1
  for (int step = 0; step < p.steps; step++) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // the stage is there for all, and nobody still reads the one that is filled next
    load(step + Tile::kStages - 1, next);
    const Chunk *tile_a = shared + stage * kStage, *tile_b = tile_a + A::kSize;
#pragma unroll
    for (int depth = 0; depth < Tile::kDepth; depth += 16) {
      uint32_t fa[MI][4], fb[NI][2];
#pragma unroll
      for (int j = 0; j < NI; j += 2) {
        uint32_t r[4];
        load_fragment<B, true>(r, tile_b, warp_n + j * 8, depth);
        fb[j][0] = r[0], fb[j][1] = r[1], fb[j + 1][0] = r[2], fb[j + 1][1] = r[3];
      }
#pragma unroll
      for (int i = 0; i < MI; i++) load_fragment<A, false>(fa[i], tile_a, warp_m + i * 16, depth);
#pragma unroll
      for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NI; j++) {
          if constexpr (std::is_same_v<T, __half>) mma_f16(sums[i][j], fa[i], fb[j]);
          else mma_bf16(sums[i][j], fa[i], fb[j]);
        }
    }
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    next = next + 1 == Tile::kStages ? 0 : next + 1;
  }
  cp_async_wait<0>();

  const int g = lane / 4, t = lane % 4 * 2;
  const Output<T>& out = p.out;
  if (out.partial) {
#pragma unroll
    for (int i = 0; i < MI * 2; i++) {
      const int64_t row = p.row(warp_m + i / 2 * 16 + i % 2 * 8 + g);
      if (row < 0) continue;
      float* to = out.partial + (place.split * out.rows + row) * out.cols;
#pragma unroll
      for (int j = 0; j < NI; j++) {
        const int column = place.n + warp_n + j * 8 + t;
        const float lo = sums[i / 2][j][i % 2 * 2], hi = sums[i / 2][j][i % 2 * 2 + 1];
        if (column < out.cols) to[column] = lo;
        if (column + 1 < out.cols) to[column + 1] = hi;
      }
    }
    return;
  }

  // Through shared memory, so that rows are written in whole vectors.
  __syncthreads();
  T* const staged = reinterpret_cast<T*>(shared);
#pragma unroll
  for (int j = 0; j < NI; j++) {
    const int column = warp_n + j * 8 + t, n = place.n + column;
    const float lo = out.bias && n < out.cols ? to_float(out.bias[n]) : 0.f;
    const float hi = out.bias && n + 1 < out.cols ? to_float(out.bias[n + 1]) : 0.f;
#pragma unroll
    for (int i = 0; i < MI * 2; i++) {
      const float* s = sums[i / 2][j] + i % 2 * 2;
      const uint32_t pair = pack<T>(s[0] + lo, s[1] + hi);
      const int row = warp_m + i / 2 * 16 + i % 2 * 8 + g;
      *reinterpret_cast<uint32_t*>(staged + row * Tile::kOutRow + column) = pair;
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = int(threadIdx.x); i < Tile::kM * (Tile::kN / 8); i += Tile::kThreads) {
    const int r = i / (Tile::kN / 8), column = i % (Tile::kN / 8) * 8, n = place.n + column;
    const int64_t row = p.row(r);
    if (row < 0 || n >= out.cols) continue;
    const T* from = staged + r * Tile::kOutRow + column;
    T* to = out.data + row * out.cols + n;
    if (out.grain == 8) {
      store_vec(to, load_vec<8>(from));
    } else {
      for (int e = 0; e < 8 && n + e < out.cols; e++) to[e] = from[e];
    }
  }
}

template <class Problem, class Tile, bool WHOLE>
void launch_mma(const Problem& p) {
  constexpr size_t kBytes =
      16 * Tile::kStages * (LoaderA<Problem, Tile, WHOLE>::kSize + LoaderB<Problem, Tile, WHOLE>::kSize);
  static_assert(kBytes >= sizeof(typename Problem::Type) * Tile::kM * Tile::kOutRow);
  const Tiles& t = p.tiles;
  DEEM_LAUNCH((conv_mma_kernel<Problem, Tile, WHOLE>), dim3(t.along_m * t.along_n * t.residues * t.splits),
              dim3(Tile::kThreads), kBytes, stream(), p);
}

}  // namespace deem::cuda::conv
