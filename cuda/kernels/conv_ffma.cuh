// The products in f32 without tensor cores, whose 10 bits of mantissa f32 does not take: 8 x 8 sums a thread.
#pragma once
#include "cuda/kernels/conv_problems.cuh"
#include "cuda/kernels/conv_tiles.cuh"

namespace deem::cuda::conv {

template <int M, int N>
struct FfmaTile {
  static constexpr int kM = M, kN = N, kDepth = 16, kStages = 3, kThreads = M / 8 * (N / 8);
};

// One side of a thread's sums: 8 lines of THREADS * 8, by 4 depths. Lines lie apart where depths are neighbours, so that the
// threads of a warp read neighbouring rows; else they come in two runs of 4.
template <class Loader, int THREADS>
struct FfmaSide {
  DEEM_DEVICE static int line(int thread, int i) {
    return Loader::kAlong ? thread + i * THREADS : (i / 4 * THREADS + thread) * 4 + i % 4;
  }
  // Pieces 0..7 are all of it: piece i has line i at 4 depths, or lines i % 2 * 4 + (0..3) at depth i / 2.
  DEEM_DEVICE static Vec<float, 4> piece(const Vec<float, 4>* tile, int thread, int depth, int i) {
    return Loader::kAlong ? tile[Loader::Place::at(line(thread, i), depth / 4)]
                          : tile[Loader::Place::at(depth + i / 2, i % 2 * THREADS + thread)];
  }
};

template <class Operand, int LINES, class Tile, bool WHOLE, bool ALONG = Operand::kAlongDepth>
struct FfmaLoader : TileLoader<Operand, LINES, Tile::kDepth, Tile::kThreads, WHOLE, Padded> {
  using TileLoader<Operand, LINES, Tile::kDepth, Tile::kThreads, WHOLE, Padded>::TileLoader;
};
template <class Operand, int LINES, class Tile, bool WHOLE>
struct FfmaLoader<Operand, LINES, Tile, WHOLE, false>
    : TileLoader<Operand, LINES, Tile::kDepth, Tile::kThreads, WHOLE, Plain> {
  using TileLoader<Operand, LINES, Tile::kDepth, Tile::kThreads, WHOLE, Plain>::TileLoader;
};

template <class Problem, class Tile, bool WHOLE>
__global__ void __launch_bounds__(Tile::kThreads) conv_ffma_kernel(const Problem problem) {
  using A = FfmaLoader<decltype(Problem::a), Tile::kM, Tile, WHOLE>;
  using B = FfmaLoader<decltype(Problem::b), Tile::kN, Tile, WHOLE>;
  using Chunk = Vec<float, 4>;
  constexpr int kThreadsM = Tile::kM / 8, kThreadsN = Tile::kN / 8, kStage = A::kSize + B::kSize;
  using SideA = FfmaSide<A, kThreadsM>;
  using SideB = FfmaSide<B, kThreadsN>;
  DEEM_SHARED_DYN(Chunk, shared);

  Problem p = problem;
  const Place place = p.tiles.template place<Tile>(blockIdx.x);
  p.template start<Tile>(place);
  const A a(p.a);
  const B b(p.b);
  const int thread_m = int(threadIdx.x) / kThreadsN, thread_n = int(threadIdx.x) % kThreadsN;

  float sums[8][8] = {};
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
#pragma unroll 1
    for (int depth = 0; depth < Tile::kDepth; depth += 4) {
      float fa[4][8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const Chunk v = SideA::piece(tile_a, thread_m, depth, i);
#pragma unroll
        for (int e = 0; e < 4; e++) (A::kAlong ? fa[e][i] : fa[i / 2][i % 2 * 4 + e]) = v.v[e];
      }
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const Chunk v = SideB::piece(tile_b, thread_n, depth, j);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
          for (int i = 0; i < 8; i++) {
            float& sum = sums[i][B::kAlong ? j : j % 2 * 4 + e];
            sum = fmaf(fa[B::kAlong ? e : j / 2][i], v.v[e], sum);
          }
      }
    }
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
    next = next + 1 == Tile::kStages ? 0 : next + 1;
  }
  cp_async_wait<0>();

  const Output<float>& out = p.out;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int64_t row = p.row(SideA::line(thread_m, i));
    if (row < 0) continue;
    float* to = (out.partial ? out.partial + place.split * out.rows * out.cols : out.data) + row * out.cols;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int n = place.n + SideB::line(thread_n, j);
      if (n < out.cols) to[n] = sums[i][j] + (out.bias && !out.partial ? out.bias[n] : 0.f);
    }
  }
}

template <class Problem, class Tile, bool WHOLE>
void launch_ffma(const Problem& p) {
  using A = FfmaLoader<decltype(Problem::a), Tile::kM, Tile, WHOLE>;
  using B = FfmaLoader<decltype(Problem::b), Tile::kN, Tile, WHOLE>;
  const Tiles& t = p.tiles;
  DEEM_LAUNCH((conv_ffma_kernel<Problem, Tile, WHOLE>), dim3(t.along_m * t.along_n * t.residues * t.splits),
              dim3(Tile::kThreads), sizeof(Vec<float, 4>) * Tile::kStages * (A::kSize + B::kSize), stream(), p);
}

}  // namespace deem::cuda::conv
