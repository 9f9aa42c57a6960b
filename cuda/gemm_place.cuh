// Which tile of which product a block makes, for all ways to multiply matrices.
#pragma once
#include "cuda/device.cuh"
#include "cuda/gemm.h"

namespace deem::cuda {

// A block's place: the tiles of eight rows of tiles are taken column by column, so that what runs together shares operands in L2.
struct TilePlace {
  int64_t batch, split, row, col;
  DEEM_DEVICE TilePlace(const GemmProblem& p, int rows, int cols) {
    constexpr int64_t kTogether = 8;
    const int64_t tiles = p.tiles_m * p.tiles_n, item = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const int64_t band = tile / (kTogether * p.tiles_n) * kTogether, inside = tile % (kTogether * p.tiles_n);
    const int64_t height = p.tiles_m - band < kTogether ? p.tiles_m - band : kTogether;
    batch = item / p.splits;
    split = item % p.splits;
    row = (band + inside % height) * rows;
    col = inside / height * cols;
  }
};

// How many rows are left, as far as a tile needs to know.
DEEM_DEVICE int clamp_left(int64_t rows) { return rows < 1024 ? int(rows) : 1024; }

// The part of k (below 2^31) that the block sums.
struct DepthRange {
  int64_t begin, end;
  int slices;
  DEEM_DEVICE DepthRange(const GemmProblem& p, int64_t split, int depth) {
    begin = split * p.k_split;
    end = begin + p.k_split < p.k ? begin + p.k_split : p.k;
    slices = int((end - begin + depth - 1) / depth);
  }
};

}  // namespace deem::cuda
