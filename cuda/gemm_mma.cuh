// Matrix product on tensor cores (mma.sync m16n8k16, sums in f32) for bf16 and f16. A block makes one tile of c from slices of k that
// a ring of cp.async stages brings to shared memory, one barrier a slice. Operands keep the order they lie in: ldmatrix, plain or
// transposing, makes the fragments, and an exclusive or of chunk and line numbers keeps its eight rows on different banks.
#pragma once
#include "cuda/device.cuh"
#include "cuda/gemm_place.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "cuda/vec.cuh"

namespace deem::cuda {

constexpr int kChunk = 8;  // elements in 16 bytes

// Sizes of a tile: of c, of a slice of k, of what one warp makes of it.
template <int M, int N, int Depth, int WarpM, int WarpN, int Stages, int BlocksPerSm>
struct MmaTile {
  static constexpr int kM = M, kN = N, kDepth = Depth, kWarpM = WarpM, kWarpN = WarpN, kStages = Stages;
  static constexpr int kBlocksPerSm = BlocksPerSm;
  static constexpr int kThreads = M / WarpM * (N / WarpN) * 32;
  static constexpr int kStageElements = (M + N) * Depth;
  static constexpr int kSharedBytes = kStageElements * Stages * 2;
  static constexpr GemmTile sizes() { return {M, N, Depth}; }
};

// A slice of one operand in shared memory: `Rows` rows of a (columns of b) times `Depth`, in lines as in global memory.
template <int Rows, int Depth, bool AlongK>
struct Slice {
  static constexpr int kLine = AlongK ? Depth : Rows, kLines = AlongK ? Rows : Depth, kChunks = kLine / kChunk;
  static_assert(kChunks == 4 || kChunks == 8 || kChunks == 16);
  // Lines of 64 bytes share a set of banks in pairs.
  DEEM_DEVICE static int at(int line, int chunk) {
    return line * kLine + (chunk ^ (kChunks == 4 ? line >> 1 & 3 : line & 7)) * kChunk;
  }
};

// One thread's part in bringing slices: chunks of one column of chunks, in every (Threads / kChunks)th line.
template <class T, class S, int Threads, bool AlongK, bool Wide>
struct SliceLoader {
  static constexpr int kStep = Threads / S::kChunks, kCount = S::kLines / kStep;
  static_assert(Threads % S::kChunks == 0 && S::kLines % kStep == 0 && kStep % 8 == 0);
  const T *base, *from;
  int64_t stride;
  int rows_left, k_left;  // from this thread's first element to the end
  int to, width;

  DEEM_DEVICE SliceLoader(const GemmSide& side, int64_t batch, int64_t row, int64_t rows, int64_t k, int64_t k_end) {
    const int line = int(threadIdx.x) / S::kChunks, chunk = int(threadIdx.x) % S::kChunks;
    base = static_cast<const T*>(side.data) + batch * side.step;
    stride = side.stride;
    width = side.width;
    to = S::at(line, chunk);
    const int64_t first_row = row + (AlongK ? line : chunk * kChunk), first_k = k + (AlongK ? chunk * kChunk : line);
    rows_left = clamp_left(rows - first_row);
    k_left = int(k_end - first_k);
    from = base + (AlongK ? first_row * stride + first_k : first_k * stride + first_row);
  }

  DEEM_DEVICE void load(T* slice) const {
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const int lines_left = (AlongK ? rows_left : k_left) - i * kStep;
      const int left = lines_left > 0 ? (AlongK ? k_left : rows_left) : 0;
      const T* source = left > 0 ? from + int64_t(i) * kStep * stride : base;
      T* target = slice + to + i * kStep * S::kLine;
      if (Wide || width == 16) {
        cp_async_16(target, source, left > 0);
      } else if (width == 4) {
#pragma unroll
        for (int e = 0; e < kChunk; e += 2) cp_async_4(target + e, left > e ? source + e : base, left > e);
      } else {
        Vec<T, kChunk> chunk;
#pragma unroll
        for (int e = 0; e < kChunk; e++) chunk.v[e] = left > e ? source[e] : from_float<T>(0.0f);
        *reinterpret_cast<Vec<T, kChunk>*>(target) = chunk;
      }
    }
  }

  DEEM_DEVICE void advance(int depth) {
    from += AlongK ? depth : depth * stride;
    k_left -= depth;
  }
};

DEEM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  mma_bf16(d, a, b);
}
DEEM_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) { mma_f16(d, a, b); }

// Rows row..row + 15 of a, or columns of b, times k..k + 15 of the slice. The four 8x8 matrices come in the order (row, k),
// (row + 8, k), (row, k + 8), (row + 8, k + 8) for a; (row, k), (row, k + 8), (row + 8, k), (row + 8, k + 8) for b.
template <class T, class S, bool AlongK, bool IsA>
DEEM_DEVICE void load_fragment(uint32_t (&r)[4], const T* slice, int row, int k) {
  const int lane = int(threadIdx.x) % 32, inner = lane & 7, first = lane >> 3 & 1, second = lane >> 4;
  const int row_8 = IsA ? first : second, k_8 = IsA ? second : first;
  if (AlongK) ldmatrix_x4(r, slice + S::at(row + row_8 * 8 + inner, k / kChunk + k_8));
  else ldmatrix_x4_trans(r, slice + S::at(k + k_8 * 8 + inner, row / kChunk + row_8));
}

// Registers r[i] of the four lanes of a quad: lane i's register t goes to lane t's register i.
DEEM_DEVICE void transpose_quad(uint32_t (&r)[4]) {
#pragma unroll
  for (int s = 1; s <= 2; s *= 2) {
    const bool upper = threadIdx.x & s;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & s) continue;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? r[i] : r[i | s], s);
      if (upper) r[i] = other;
      else r[i | s] = other;
    }
  }
}

template <class T>
DEEM_DEVICE void store_chunk(T* c, const uint32_t (&r)[4], int64_t left, bool vector) {
  if (vector && left >= kChunk) {
    *reinterpret_cast<Vec<uint32_t, 4>*>(c) = {{r[0], r[1], r[2], r[3]}};
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunk; i++) {
    if (i >= left) break;
    const unsigned short bits = static_cast<unsigned short>(i % 2 ? r[i / 2] >> 16 : r[i / 2] & 0xffffu);
    *reinterpret_cast<unsigned short*>(c + i) = bits;
  }
}

DEEM_DEVICE void store_pair(float* c, float first, float second, int64_t left, bool vector) {
  if (vector && left >= 2) {
    *reinterpret_cast<Vec<float, 2>*>(c) = {{first, second}};
  } else {
    if (left > 0) c[0] = first;
    if (left > 1) c[1] = second;
  }
}

template <class T, class Tile, bool ACols, bool BCols, bool Wide>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm) mma_gemm(GemmProblem p) {
  constexpr int kRowTiles = Tile::kWarpM / 16, kColTiles = Tile::kWarpN / 8, kStages = Tile::kStages;
  using SliceA = Slice<Tile::kM, Tile::kDepth, ACols>;
  using SliceB = Slice<Tile::kN, Tile::kDepth, BCols>;
  DEEM_SHARED_DYN(T, shared);
  const TilePlace place(p, Tile::kM, Tile::kN);
  const DepthRange range(p, place.split, Tile::kDepth);
  SliceLoader<T, SliceA, Tile::kThreads, ACols, Wide> load_a(p.a, place.batch, place.row, p.m, range.begin, range.end);
  SliceLoader<T, SliceB, Tile::kThreads, BCols, Wide> load_b(p.b, place.batch, place.col, p.n, range.begin, range.end);
  auto bring = [&](int slice) {
    if (slice < range.slices) {
      T* stage = shared + slice % kStages * Tile::kStageElements;
      load_a.load(stage);
      load_b.load(stage + Tile::kM * Tile::kDepth);
      load_a.advance(Tile::kDepth);
      load_b.advance(Tile::kDepth);
    }
    cp_async_commit();  // an empty group at the end keeps the count of groups that are waited for
  };
  for (int s = 0; s < kStages - 1; s++) bring(s);

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int warp_row = warp % (Tile::kM / Tile::kWarpM) * Tile::kWarpM;
  const int warp_col = warp / (Tile::kM / Tile::kWarpM) * Tile::kWarpN;
  float sum[kRowTiles][kColTiles][4] = {};
  for (int s = 0; s < range.slices; s++) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // slice s is there for all, and nobody reads the stage that is filled next
    bring(s + kStages - 1);
    const T* a_slice = shared + s % kStages * Tile::kStageElements;
    const T* b_slice = a_slice + Tile::kM * Tile::kDepth;
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += 16) {
      uint32_t a[kRowTiles][4], b[kColTiles / 2][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; i++) load_fragment<T, SliceA, ACols, true>(a[i], a_slice, warp_row + i * 16, k);
#pragma unroll
      for (int j = 0; j < kColTiles / 2; j++)
        load_fragment<T, SliceB, BCols, false>(b[j], b_slice, warp_col + j * 16, k);
#pragma unroll
      for (int i = 0; i < kRowTiles; i++)
#pragma unroll
        for (int j = 0; j < kColTiles; j++) {
          const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma(sum[i][j], a[i], pair, T{});
        }
    }
  }
  cp_async_wait<0>();

  // A lane holds columns 2t, 2t + 1 of rows g and g + 8 of every 16 x 8 piece.
  const int g = lane / 4, t = lane % 4;
  const int64_t first_row = place.row + warp_row + g, first_col = place.col + warp_col;
  if (p.bias && p.splits == 1) {
    const T* bias = static_cast<const T*>(p.bias);
#pragma unroll
    for (int j = 0; j < kColTiles; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int64_t col = first_col + j * 8 + t * 2 + e;
        const float add = col < p.n ? to_float(bias[col]) : 0.0f;
#pragma unroll
        for (int i = 0; i < kRowTiles; i++) {
          sum[i][j][e] += add;
          sum[i][j][e + 2] += add;
        }
      }
  }
  if (p.splits > 1 || p.c_wide) {
    const bool parts = p.splits > 1;
    float* c = parts ? p.partial + (place.split * p.batch + place.batch) * p.m * p.n
                     : static_cast<float*>(p.c) + place.batch * p.c_step;
    const int64_t stride = parts ? p.n : p.c_stride;
    const bool vector = parts ? p.n % 2 == 0 : p.c_vector;  // of two columns, the first one even
#pragma unroll
    for (int i = 0; i < kRowTiles; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int64_t row = first_row + i * 16 + half * 8;
        if (row >= p.m) continue;
#pragma unroll
        for (int j = 0; j < kColTiles; j++) {
          const int64_t col = first_col + j * 8 + t * 2;
          store_pair(c + row * stride + col, sum[i][j][half * 2], sum[i][j][half * 2 + 1], p.n - col, vector);
        }
      }
    return;
  }
  T* c = static_cast<T*>(p.c) + place.batch * p.c_step;
#pragma unroll
  for (int i = 0; i < kRowTiles; i++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < kColTiles; j += 4) {
        uint32_t r[4];
#pragma unroll
        for (int e = 0; e < 4; e++) r[e] = pack<T>(sum[i][j + e][half * 2], sum[i][j + e][half * 2 + 1]);
        transpose_quad(r);
        const int64_t row = first_row + i * 16 + half * 8, col = first_col + (j + t) * 8;
        if (row < p.m && col < p.n) store_chunk(c + row * p.c_stride + col, r, p.n - col, p.c_vector);
      }
}

// 48 KB of shared memory each, so that a multiprocessor of 100 KB holds two blocks. The small tile goes deeper, since it is for
// products with few tiles, which wait for memory.
using LargeMma = MmaTile<128, 128, 32, 64, 64, 3, 2>;
using TallMma = MmaTile<128, 64, 32, 64, 32, 4, 3>;
using SmallMma = MmaTile<64, 64, 64, 32, 32, 3, 3>;

// Chunks that may not be copied whole cost so much more than multiplying that the tall tile has no kernels for them.
template <class T, class Tile, bool ACols, bool BCols>
void launch_mma(const GemmProblem& p) {
  const dim3 grid(unsigned(p.tiles_m * p.tiles_n * p.batch * p.splits));
  if constexpr (!std::is_same_v<Tile, TallMma>)
    if (p.a.width != 16 || p.b.width != 16)
      return DEEM_LAUNCH((mma_gemm<T, Tile, ACols, BCols, false>), grid, dim3(Tile::kThreads), Tile::kSharedBytes,
                         stream(), p);
  DEEM_LAUNCH((mma_gemm<T, Tile, ACols, BCols, true>), grid, dim3(Tile::kThreads), Tile::kSharedBytes, stream(), p);
}

template <class T, class Tile>
void launch_mma_layout(const GemmProblem& p) {
  if (p.a.along_k) {
    if (p.b.along_k) launch_mma<T, Tile, true, true>(p);
    else launch_mma<T, Tile, true, false>(p);
  } else {
    if (p.b.along_k) launch_mma<T, Tile, false, true>(p);
    else launch_mma<T, Tile, false, false>(p);
  }
}

// p's tiles are planned here; partial sums, where there are any, lie in scratch memory until they are added up.
template <class T>
void mma_product(GemmProblem p, DType dtype) {
  const bool wide = p.a.width == 16 && p.b.width == 16;
  const GemmTile large = LargeMma::sizes(), tall = TallMma::sizes(), small = SmallMma::sizes();
  const int tile = wide ? plan_tiles(p, {large, tall, small}) : plan_tiles(p, {large, small});
  Scratch<float> partial(p.splits > 1 ? p.splits * p.batch * p.m * p.n : 0);
  p.partial = partial.data();
  if (tile == 0) launch_mma_layout<T, LargeMma>(p);
  else if (tile == 1 && wide) launch_mma_layout<T, TallMma>(p);
  else launch_mma_layout<T, SmallMma>(p);
  if (p.splits > 1) sum_splits(p, dtype);
}

}  // namespace deem::cuda
