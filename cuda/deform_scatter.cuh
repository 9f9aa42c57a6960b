// The gradient of the sampled values: dvalue[corner] += weight of the corner * dy, for all samples of all queries.
//
// Deterministic without atomics: a warp owns a tile of rows of one head and image, and their sums in shared memory. It looks
// through the samples of the levels the tile is in, 32 at a time and in order of the queries, and adds those that touch its rows;
// a lane owns its channels. Every sum so has the order of the CPU's, each element of dvalue is written once, in its own type, and
// nothing is zeroed before. It costs 4 bytes read from the L2 cache a sample and tile (about an eighth of the instructions
// at 8 points, heads of 32 channels and 64 x 64 maps), and a warp whose tile everybody samples has to take all of them in turn:
// at worst queries * points steps of some 100 cycles. Where results may depend on timing, the warps of a block share one tile four times
// as large, take the samples in turns and add by atomics on shared memory: the same reads, a fourth of the longest run.
#pragma once
#include "cuda/bilinear.cuh"

namespace deem::cuda {

// One entry a sample, [heads of images, level, query, point]: heads of images are numbered (b * images + n) * heads + h.
struct SampleRecords {
  uint32_t* cell;  // kNoCell where it adds nothing
  float *x, *y;    // fractions inside the cell
  float* weight;
};

struct Scatter {
  SampleRecords samples;
  const void* dy;  // [b, q, heads, dim]
  void* dvalue;    // [b, images, rows, heads, dim]
  const DeformLevel* levels;
  int64_t b, images, q, heads, dim, rows, n_levels, points;
  int64_t tiles, channel_tiles;
};

constexpr int kTileFloats = 2048;  // of a warp

template <bool kAtomic>
DEEM_DEVICE void add_shared(float* to, float v) {
  if constexpr (kAtomic) atomicAdd(to, v);
  else *to += v;
}

// C: channels of a lane.
template <class T, int C, bool kAtomic>
__global__ void __launch_bounds__(kQueryThreads) scatter_kernel(Scatter a) {
  DEEM_SHARED(float, all_sums, kQueryWarps* kTileFloats);
  DEEM_SHARED(Samples, all_hits, kQueryWarps);
  DEEM_SHARED(int, all_queries, kQueryWarps * 32);
  constexpr int kWidth = 32 * C, kRows = (kAtomic ? kQueryWarps : 1) * kTileFloats / kWidth, kAhead = 4;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int64_t item = kAtomic ? int64_t(blockIdx.x) : int64_t(blockIdx.x) * kQueryWarps + warp;
  const int64_t head = item / (a.tiles * a.channel_tiles), part = item - head * a.tiles * a.channel_tiles;
  const int64_t image = head / a.heads, h = head - image * a.heads;
  if (image >= a.b * a.images) return;  // whole warps, and blocks where they share a tile
  float* sums = all_sums + (kAtomic ? 0 : warp * kTileFloats);
  Samples& hits = all_hits[warp];
  int* queries = all_queries + warp * 32;
  const int64_t begin = part / a.channel_tiles * kRows, channel = part % a.channel_tiles * kWidth + lane * C;
  const int64_t end = begin + kRows < a.rows ? begin + kRows : a.rows;
  const bool active = channel < a.dim;
  const int first_warp = kAtomic ? warp : 0, warps = kAtomic ? kQueryWarps : 1;

  for (int r = first_warp; r < kRows; r += warps)
#pragma unroll
    for (int c = 0; c < C; c++) sums[r * kWidth + lane * C + c] = 0;
  if constexpr (kAtomic) __syncthreads();

  const T* dy = static_cast<const T*>(a.dy) + (image / a.images * a.q * a.heads + h) * a.dim + channel;
  const int count = int(a.q * a.points), points = int(a.points);
  for (int64_t l = 0; l < a.n_levels; l++) {
    const DeformLevel level = a.levels[l];
    const int width = level.width, height = level.height;
    // The tile's rows in this level, and the cells that touch their lines.
    const int64_t from = begin > level.start ? begin - level.start : 0;
    const int64_t past = end - level.start < int64_t(width) * height ? end - level.start : int64_t(width) * height;
    if (from >= past) continue;
    const uint32_t lowest = uint32_t(from / width) * uint32_t(width + 1);
    const uint32_t cells = uint32_t((past - 1) / width + 2) * uint32_t(width + 1) - lowest;
    const int64_t base = (head * a.n_levels + l) * count;
    for (int first = first_warp * 32 * kAhead; first < count; first += warps * 32 * kAhead) {
      uint32_t ahead[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; k++) {
        const int s = first + k * 32 + lane;
        ahead[k] = s < count ? a.samples.cell[base + s] : kNoCell;
      }
#pragma unroll
      for (int k = 0; k < kAhead; k++) {
        const bool hit = ahead[k] != kNoCell && ahead[k] - lowest < cells;
        const uint32_t found = __ballot_sync(0xffffffffu, hit);
        if (found == 0) continue;
        if (hit) {
          const int s = first + k * 32 + lane, slot = __popc(found & ((1u << lane) - 1));
          const Cell cell = cell_at(ahead[k], a.samples.x[base + s], a.samples.y[base + s], width);
          const int4 rows = corner_rows(cell, width, height, 0);
          const int64_t shift = level.start - begin;
          auto local = [&](int row) { return row >= from && row < past ? int(row + shift) : -1; };
          hits.rows[slot] = make_int4(local(rows.x), local(rows.y), local(rows.z), local(rows.w));
          hits.weights[slot] = corner_weights(cell, a.samples.weight[base + s]);
          queries[slot] = s / points;
        }
        __syncwarp();
        const int n = __popc(found);
        for (int i = 0; i < n && active; i += kAhead) {
          float g[kAhead][C];
#pragma unroll
          for (int j = 0; j < kAhead; j++)
            if (i + j < n) load_float(dy + queries[i + j] * a.heads * a.dim, g[j]);
#pragma unroll
          for (int j = 0; j < kAhead; j++) {
            if (i + j >= n) break;
            const int4 rows = hits.rows[i + j];
            const float4 weights = hits.weights[i + j];
            const int row[4] = {rows.x, rows.y, rows.z, rows.w};
            const float weight[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
            for (int corner = 0; corner < 4; corner++) {
              if (row[corner] < 0) continue;
#pragma unroll
              for (int c = 0; c < C; c++)
                add_shared<kAtomic>(sums + row[corner] * kWidth + lane * C + c, weight[corner] * g[j][c]);
            }
          }
        }
        __syncwarp();
      }
    }
  }
  if constexpr (kAtomic) __syncthreads();
  if (!active) return;
  T* dvalue = static_cast<T*>(a.dvalue) + (image * a.rows * a.heads + h) * a.dim + channel;
  for (int64_t row = begin + first_warp; row < end; row += warps) {
    float v[C];
#pragma unroll
    for (int c = 0; c < C; c++) v[c] = sums[(row - begin) * kWidth + lane * C + c];
    store_float(dvalue + row * a.heads * a.dim, v);
  }
}

template <class T>
void scatter(const char* op, Scatter a) {
  check<ValueError>(a.q * a.points < int64_t(1) << 30, "[", op,
                    "] queries * points must be below 2^30 on cuda but are ", a.q * a.points);
  auto run = [&]<int C, bool kAtomic>(std::integral_constant<int, C>, std::bool_constant<kAtomic>) {
    constexpr int kRows = (kAtomic ? kQueryWarps : 1) * kTileFloats / (32 * C);
    a.tiles = (a.rows + kRows - 1) / kRows;
    a.channel_tiles = (a.dim + 32 * C - 1) / (32 * C);
    const int64_t items = a.b * a.images * a.heads * a.tiles * a.channel_tiles;
    const int64_t blocks = kAtomic ? items : (items + kQueryWarps - 1) / kQueryWarps;
    if (blocks == 0) return;
    check<ValueError>(blocks <= kMaxGrid, "[", op, "] cuda has no grid for ", items, " tiles of values");
    DEEM_LAUNCH((scatter_kernel<T, C, kAtomic>), dim3(unsigned(blocks)), dim3(kQueryThreads), 0, stream(), a);
  };
  const bool pairs = a.dim > 32 && a.dim % 2 == 0 && aligned_to(2 * sizeof(T), a.dy, a.dvalue);
  auto with_width = [&](auto atomic) {
    if (pairs) run(std::integral_constant<int, 2>{}, atomic);
    else run(std::integral_constant<int, 1>{}, atomic);
  };
  if (deterministic()) with_width(std::false_type{});
  else with_width(std::true_type{});
}

}  // namespace deem::cuda
