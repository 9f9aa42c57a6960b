// Kernels that move elements, as units of 1 to 16 bytes.
#include "ops/view.h"

#include "cuda/reduce.cuh"
#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

using Unit16 = Vec<uint64_t, 2>;

// Calls f with a value of the unsigned type of `width` bytes.
template <class F>
void dispatch_width(int64_t width, F&& f) {
  switch (width) {
    case 1: return f(uint8_t{});
    case 2: return f(uint16_t{});
    case 4: return f(uint32_t{});
    case 8: return f(uint64_t{});
    default: return f(Unit16{});
  }
}

// ---- copy ---------------------------------------------------------------------------------------------------------

template <class U>
struct CopyWalk {
  U* y;
  const U* x;
  bool row_x;  // false: one element for a whole run of y

  template <int N>
  __device__ void at(const int64_t (&from)[2], int count) const {
    if constexpr (N > 1) {
      Vec<U, N> v;
      if (row_x) {
        v = read_pack<N>(x + from[1], count);
      } else {
#pragma unroll
        for (int k = 0; k < N; k++) v.v[k] = x[from[1]];
      }
      write_pack<N>(y + from[0], v, count);
    } else {
      y[from[0]] = x[from[1]];
    }
  }
};

constexpr int kTile = 32, kTileRows = 8;  // a tile of 32 x 32 elements, by 32 x 8 threads

// y runs along one axis of the tile and x along the other, so that either would be read or written in single elements. Tiles
// of x go through shared memory, whose rows are one element longer than they need be: its columns then lie in as many banks.
template <class U>
__global__ void __launch_bounds__(kTile* kTileRows)
    copy_transposed(U* y, const U* x, int64_t y_axis, int64_t x_axis, int64_t y_row, int64_t x_row, int64_t tiles,
                    Divider y_tiles, Divider x_tiles, Axes<2> outer) {
  DEEM_SHARED(U, tile, kTile * (kTile + 1));
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    int64_t rest = y_tiles.divide(t);
    const int64_t along_y = (t - rest * y_tiles.d) * kTile;  // places on the axis that y runs along
    const int64_t high = x_tiles.divide(rest), along_x = (rest - high * x_tiles.d) * kTile;
    rest = high;
    U* to = y + along_y + along_x * y_row;
    const U* from = x + along_x + along_y * x_row;
    for (int d = 0; d < outer.ndim; d++) {
      const int64_t next = outer.sizes[d].divide(rest), place = rest - next * outer.sizes[d].d;
      to += place * outer.strides[0][d];
      from += place * outer.strides[1][d];
      rest = next;
    }
    const int lane = threadIdx.x, line = threadIdx.y;
    for (int j = line; j < kTile; j += kTileRows)
      if (along_y + j < y_axis && along_x + lane < x_axis) tile[j * (kTile + 1) + lane] = from[j * x_row + lane];
    __syncthreads();
    for (int j = line; j < kTile; j += kTileRows)
      if (along_x + j < x_axis && along_y + lane < y_axis) to[j * y_row + lane] = tile[lane * (kTile + 1) + j];
    __syncthreads();
  }
}

// The axis with stride 1, or -1.
int unit_axis(const Strided<2>& s, int operand) {
  for (int d = s.ndim - 1; d >= 0; d--)
    if (s.strides[operand][d] == 1) return d;
  return -1;
}

template <class U>
void launch_transposed(const CopyArgs& a, int y_unit, int x_unit) {
  const Strided<2>& s = a.axes;
  const int64_t y_axis = s.shape[y_unit], x_axis = s.shape[x_unit], y_count = (y_axis + kTile - 1) / kTile,
                x_count = (x_axis + kTile - 1) / kTile;
  int64_t tiles = y_count * x_count;
  for (int d = 0; d < s.ndim; d++)
    if (d != y_unit && d != x_unit) tiles *= s.shape[d];
  Axes<2> outer{};
  for (int d = s.ndim - 1; d >= 0; d--) {
    if (d == y_unit || d == x_unit) continue;
    outer.sizes[outer.ndim] = Divider(s.shape[d], tiles);
    for (int k = 0; k < 2; k++) outer.strides[k][outer.ndim] = s.strides[k][d];
    outer.ndim++;
  }
  const dim3 grid{unsigned(smaller<int64_t>(tiles, int64_t(sm_count()) * 256))};
  DEEM_LAUNCH((copy_transposed<U>), grid, dim3(kTile, kTileRows), 0, stream(), static_cast<U*>(a.y),
              static_cast<const U*>(a.x), y_axis, x_axis, s.strides[0][x_unit], s.strides[1][y_unit], tiles,
              Divider(y_count, tiles), Divider(x_count, tiles), outer);
}

void copy(const CopyArgs& a) {
  const Strided<2>& s = a.axes;
  const int last = s.ndim - 1;
  const bool rows = s.strides[0][last] == 1 && s.strides[1][last] <= 1;
  dispatch_width(a.width, [&]<class U>(U) {
    if constexpr (sizeof(U) < 16) {
      if (!rows) {
        const int y_unit = unit_axis(s, 0), x_unit = unit_axis(s, 1);
        if (y_unit >= 0 && x_unit >= 0 && y_unit != x_unit && s.shape[y_unit] >= 8 && s.shape[x_unit] >= 8)
          return launch_transposed<U>(a, y_unit, x_unit);
      }
      constexpr int N = kVecWidth<U>;
      const CopyWalk<U> f{static_cast<U*>(a.y), static_cast<const U*>(a.x), s.strides[1][last] != 0};
      for_strided<N>(f, s, rows && packs_fit<N>(s, 0, f.y) && packs_fit<N>(s, 1, f.x));
    }
  });
}

// ---- gather_rows --------------------------------------------------------------------------------------------------

template <class U>
struct GatherRowsWalk {
  const U* x;
  const int64_t* index;
  U* y;
  int64_t cols;

  template <int N>
  __device__ void at(int64_t row, int64_t column, int) const {
    const int64_t from = index[row];
    y[row * cols + column] = from < 0 ? U{} : x[from * cols + column];
  }
};

void gather_rows(const GatherRowsArgs& a) {
  const uintptr_t bits = uintptr_t(a.row_bytes) | reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.y);
  int64_t width = 16;
  while (bits % uintptr_t(width) != 0) width /= 2;
  dispatch_width(width, [&]<class U>(U) {
    const int64_t cols = a.row_bytes / int64_t(sizeof(U));
    for_rows<1>(GatherRowsWalk<U>{static_cast<const U*>(a.x), a.index, static_cast<U*>(a.y), cols}, a.count, cols,
                true);
  });
}

}  // namespace

DEEM_CUDA_KERNEL("copy", copy);
DEEM_CUDA_KERNEL("gather_rows", gather_rows);

}  // namespace deem::cuda
