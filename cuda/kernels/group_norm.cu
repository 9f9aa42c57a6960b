// A block reads a run of positions of one feature map, all channels or a tile of them: a thread keeps to one pack of channels and
// steps through the positions. Statistics of each run and channel are combined in order, so results do not depend on timing.
// x is read twice forward and twice backward (with dy); the second time much of it comes from the L2 cache.
#include "ops/group_norm.h"

#include <algorithm>

#include "cuda/partials.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace {

constexpr int kThreads = 256;

struct GroupNorm {
  const void *x, *dy, *w, *b;
  void* out;              // y, or dx
  float *mean, *rstd;     // [n, groups]
  float *first, *second;  // [n, blocks, channels]: mean and sum of squared deviations, or sums of g * xhat and of g
  float2* means;          // [n, groups]: means of w * g * xhat and of w * g
  int64_t n, positions, block, blocks;
  int channels, groups, tile;  // tile: packs of channels of a block
  float eps;
};

// Where a thread works: `pack` is its first channel; it takes positions row, row + rows, ... of the block's `count`.
template <int V>
struct Place {
  int64_t n, k, count, first;  // feature map, run of positions, its length and the element at its start
  int tile_channels, channel, row, rows;
  bool active;

  DEEM_DEVICE explicit Place(const GroupNorm& a) {
    n = int64_t(blockIdx.x) / a.blocks;
    k = int64_t(blockIdx.x) - n * a.blocks;
    const int64_t left = a.positions - k * a.block;
    count = left < a.block ? left : a.block;
    const int begin = int(blockIdx.y) * a.tile, all = a.channels / V;
    const int packs = all - begin < a.tile ? all - begin : a.tile;
    rows = kThreads / packs;
    row = int(threadIdx.x) / packs;
    active = row < rows;
    channel = (begin + int(threadIdx.x) - row * packs) * V;
    tile_channels = packs * V;
    first = (n * a.positions + k * a.block) * a.channels;
  }
  DEEM_DEVICE int tile_start(const GroupNorm& a) const { return int(blockIdx.y) * a.tile * V; }
  // Positions that the threads of row r take.
  DEEM_DEVICE int64_t count_of(int r) const { return (count - r + rows - 1) / rows; }
};

// Statistics and parameters of a thread's channels.
template <class P, int V>
struct Channels {
  float mean[V], rstd[V], w[V], b[V];

  DEEM_DEVICE Channels(const GroupNorm& a, const Place<V>& at) {
    load_float(static_cast<const P*>(a.w) + at.channel, w);
    load_float(static_cast<const P*>(a.b) + at.channel, b);
    const int per_group = a.channels / a.groups;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const int64_t g = at.n * a.groups + (at.channel + i) / per_group;
      mean[i] = a.mean[g];
      rstd[i] = a.rstd[g];
    }
  }
};

// Welford's update for every channel of the pack; then the threads that share a pack are combined by Chan, Golub & LeVeque's
// formula: sum (x - m)^2 = sum over parts of their own sums + count * (their mean - m)^2.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) moments_kernel(GroupNorm a) {
  DEEM_SHARED(float, means, kThreads* V);
  DEEM_SHARED(float, squares, kThreads* V);
  const Place<V> at(a);
  float mean[V] = {}, square[V] = {};
  if (at.active) {
    const T* x = static_cast<const T*>(a.x) + at.first + at.channel;
    int seen = 0;
#pragma unroll 4
    for (int64_t p = at.row; p < at.count; p += at.rows) {
      float v[V];
      load_float(x + p * a.channels, v);
      const float inverse = 1.0f / float(++seen);
#pragma unroll
      for (int i = 0; i < V; i++) {
        const float d = v[i] - mean[i];
        mean[i] += d * inverse;
        square[i] += d * (v[i] - mean[i]);
      }
    }
    const int to = at.row * at.tile_channels + at.channel - at.tile_start(a);
#pragma unroll
    for (int i = 0; i < V; i++) {
      means[to + i] = mean[i];
      squares[to + i] = square[i];
    }
  }
  __syncthreads();
  const int64_t out = (at.n * a.blocks + at.k) * a.channels + at.tile_start(a);
  for (int c = int(threadIdx.x); c < at.tile_channels; c += kThreads) {
    float m = 0, s = 0;
    for (int r = 0; r < at.rows; r++) m += float(at.count_of(r)) * means[r * at.tile_channels + c];
    m /= float(at.count);
    for (int r = 0; r < at.rows; r++) {
      const float d = means[r * at.tile_channels + c] - m;
      s += squares[r * at.tile_channels + c] + float(at.count_of(r)) * d * d;
    }
    a.first[out + c] = m;
    a.second[out + c] = s;
  }
}

// Visits this thread's share of a group's entries in [blocks, channels]: f(index, channel, positions of that block).
template <int THREADS, class F>
DEEM_DEVICE void for_group(const GroupNorm& a, F&& f) {
  const int per_group = a.channels / a.groups;
  const int64_t n = int64_t(blockIdx.x) / a.groups;
  const int start = int(blockIdx.x - n * a.groups) * per_group;
  for (int64_t e = threadIdx.x; e < a.blocks * per_group; e += THREADS) {
    const int64_t k = e / per_group, left = a.positions - k * a.block;
    const int c = start + int(e - k * per_group);
    f((n * a.blocks + k) * a.channels + c, c, left < a.block ? left : a.block);
  }
}

// One block a group. Sums in double: their number grows with the map.
__global__ void __launch_bounds__(128, 8) combine_moments_kernel(GroupNorm a) {
  const double total = double(a.positions) * double(a.channels / a.groups);
  double sum = 0, square = 0;
  for_group<128>(a, [&](int64_t i, int, int64_t count) { sum += double(count) * double(a.first[i]); });
  const double mean = block_sum<128>(sum) / total;
  for_group<128>(a, [&](int64_t i, int, int64_t count) {
    const double d = double(a.first[i]) - mean;
    square += double(a.second[i]) + double(count) * d * d;
  });
  square = block_sum<128>(square);
  if (threadIdx.x != 0) return;
  a.mean[blockIdx.x] = float(mean);
  a.rstd[blockIdx.x] = float(1.0 / sqrt(square / total + double(a.eps)));
}

DEEM_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <bool kSilu, class T, class P, int V>
__global__ void __launch_bounds__(kThreads, 4) normalize_kernel(GroupNorm a) {
  const Place<V> at(a);
  if (!at.active) return;
  Channels<P, V> k(a, at);
#pragma unroll
  for (int i = 0; i < V; i++) k.w[i] *= k.rstd[i];
  const int64_t first = at.first + at.channel;
  const T* x = static_cast<const T*>(a.x) + first;
  T* y = static_cast<T*>(a.out) + first;
#pragma unroll 2
  for (int64_t p = at.row; p < at.count; p += at.rows) {
    float v[V];
    load_float(x + p * a.channels, v);
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float z = (v[i] - k.mean[i]) * k.w[i] + k.b[i];
      v[i] = kSilu ? z * sigmoid(z) : z;
    }
    store_float(y + p * a.channels, v);
  }
}

// dy, times the derivative of silu at z: s * (1 + z * (1 - s)) with s = sigmoid(z).
template <bool kSilu>
DEEM_DEVICE float inner_gradient(float dy, float z) {
  if constexpr (!kSilu) return dy;
  const float s = sigmoid(z);
  return dy * s * (1.0f + z * (1.0f - s));
}

template <bool kSilu, class T, class P, int V>
__global__ void __launch_bounds__(kThreads) channel_gradients_kernel(GroupNorm a) {
  DEEM_SHARED(float, shared, kThreads* V * 2);
  const Place<V> at(a);
  float dw[V] = {}, db[V] = {};
  if (at.active) {
    const Channels<P, V> k(a, at);
    const int64_t first = at.first + at.channel;
    const T *x = static_cast<const T*>(a.x) + first, *dy = static_cast<const T*>(a.dy) + first;
#pragma unroll 2
    for (int64_t p = at.row; p < at.count; p += at.rows) {
      float v[V], g[V];
      load_float(x + p * a.channels, v);
      load_float(dy + p * a.channels, g);
#pragma unroll
      for (int i = 0; i < V; i++) {
        const float xhat = (v[i] - k.mean[i]) * k.rstd[i];
        g[i] = inner_gradient<kSilu>(g[i], xhat * k.w[i] + k.b[i]);
        db[i] += g[i];
        dw[i] += g[i] * xhat;
      }
    }
    const int to = at.row * at.tile_channels + at.channel - at.tile_start(a);
#pragma unroll
    for (int i = 0; i < V; i++) {
      shared[to + i] = dw[i];
      shared[kThreads * V + to + i] = db[i];
    }
  }
  __syncthreads();
  const int64_t out = (at.n * a.blocks + at.k) * a.channels + at.tile_start(a);
  for (int c = int(threadIdx.x); c < at.tile_channels; c += kThreads) {
    float sum_w = 0, sum_b = 0;
    for (int r = 0; r < at.rows; r++) {
      sum_w += shared[r * at.tile_channels + c];
      sum_b += shared[kThreads * V + r * at.tile_channels + c];
    }
    a.first[out + c] = sum_w;
    a.second[out + c] = sum_b;
  }
}

template <class P>
__global__ void __launch_bounds__(128) group_means_kernel(GroupNorm a) {
  const double total = double(a.positions) * double(a.channels / a.groups);
  double dw = 0, db = 0;
  for_group<128>(a, [&](int64_t i, int c, int64_t) {
    const double w = double(to_float(static_cast<const P*>(a.w)[c]));
    dw += w * double(a.first[i]);
    db += w * double(a.second[i]);
  });
  dw = block_sum<128>(dw);
  db = block_sum<128>(db);
  if (threadIdx.x == 0) a.means[blockIdx.x] = make_float2(float(dw / total), float(db / total));
}

template <bool kSilu, class T, class P, int V>
__global__ void __launch_bounds__(kThreads) dx_kernel(GroupNorm a) {
  const Place<V> at(a);
  if (!at.active) return;
  const Channels<P, V> k(a, at);
  float mean_gx[V], mean_g[V];
  const int per_group = a.channels / a.groups;
#pragma unroll
  for (int i = 0; i < V; i++) {
    const float2 m = a.means[at.n * a.groups + (at.channel + i) / per_group];
    mean_gx[i] = m.x;
    mean_g[i] = m.y;
  }
  const int64_t first = at.first + at.channel;
  const T *x = static_cast<const T*>(a.x) + first, *dy = static_cast<const T*>(a.dy) + first;
  T* dx = static_cast<T*>(a.out) + first;
  for (int64_t p = at.row; p < at.count; p += at.rows) {
    float v[V], g[V];
    load_float(x + p * a.channels, v);
    load_float(dy + p * a.channels, g);
#pragma unroll
    for (int i = 0; i < V; i++) {
      const float xhat = (v[i] - k.mean[i]) * k.rstd[i];
      g[i] = inner_gradient<kSilu>(g[i], xhat * k.w[i] + k.b[i]);
      v[i] = k.rstd[i] * (g[i] * k.w[i] - mean_g[i] - xhat * mean_gx[i]);
    }
    store_float(dx + p * a.channels, v);
  }
}

// Runs of about 16k elements: at least 16 positions, so that their statistics are small beside them, and at most 512 runs.
template <class Args>
GroupNorm shape_of(const Args& a) {
  check<ValueError>(a.channels < int64_t(1) << 30, "[group_norm] channels must be below 2^30 on cuda but are ",
                    a.channels);
  GroupNorm k{};
  k.x = a.x;
  k.w = a.w;
  k.b = a.b;
  k.n = a.n;
  k.positions = a.positions;
  k.channels = int(a.channels);
  k.groups = int(a.groups);
  k.block = std::max({int64_t(16), 16384 / a.channels, (a.positions + 511) / 512});
  k.blocks = (a.positions + k.block - 1) / k.block;
  return k;
}

template <int V>
dim3 set_tiles(GroupNorm& k) {
  const int packs = k.channels / V, tiles = (packs + kThreads - 1) / kThreads;
  k.tile = (packs + tiles - 1) / tiles;
  check<ValueError>(k.n * k.blocks <= kMaxGrid, "[group_norm] cuda has no grid for ", k.n, " feature maps");
  return dim3(unsigned(k.n * k.blocks), unsigned(tiles));
}

// Calls f<T, P, V, silu> as types and constants.
template <class Args, class F>
void dispatch_norm(const Args& a, bool aligned, F&& f) {
  dispatch_pair(a.dtype, a.param_dtype, "group_norm", [&]<class T, class P>(T t, P p) {
    constexpr int V = kVecWidth<T>;
    const bool wide = aligned && a.channels % V == 0 && aligned_to(V * sizeof(P), a.w, a.b);
    auto with_width = [&](auto width) {
      if (a.silu) f(t, p, width, std::true_type{});
      else f(t, p, width, std::false_type{});
    };
    if (wide) with_width(std::integral_constant<int, V>{});
    else with_width(std::integral_constant<int, 1>{});
  });
}

void forward(const GroupNormArgs& a) {
  GroupNorm k = shape_of(a);
  if (k.n == 0) return;
  k.out = a.y;
  k.mean = a.mean;
  k.rstd = a.rstd;
  k.eps = a.eps;
  const int64_t partials = k.n * k.blocks * k.channels;
  Scratch<float> moments(2 * partials);
  k.first = moments.data();
  k.second = k.first + partials;
  const dim3 groups(unsigned(k.n * k.groups));
  dispatch_norm(
      a, aligned_to(16, a.x, a.y),
      [&]<class T, class P, int V, bool silu>(T, P, std::integral_constant<int, V>, std::bool_constant<silu>) {
        const dim3 grid = set_tiles<V>(k);
        if (k.blocks > 0) DEEM_LAUNCH((moments_kernel<T, V>), grid, dim3(kThreads), 0, stream(), k);
        DEEM_LAUNCH(combine_moments_kernel, groups, dim3(128), 0, stream(), k);
        if (k.blocks > 0) DEEM_LAUNCH((normalize_kernel<silu, T, P, V>), grid, dim3(kThreads), 0, stream(), k);
      });
}

void backward(const GroupNormBackwardArgs& a) {
  GroupNorm k = shape_of(a);
  k.dy = a.dy;
  k.out = a.dx;
  k.mean = const_cast<float*>(a.mean);
  k.rstd = const_cast<float*>(a.rstd);
  const int64_t partials = k.n * k.blocks * k.channels;
  Scratch<float> sums(2 * partials);
  Scratch<float2> means(a.dx ? k.n * k.groups : 0);
  k.first = sums.data();
  k.second = k.first + partials;
  k.means = means.data();
  dispatch_norm(
      a, aligned_to(16, a.x, a.dy, a.dx),
      [&]<class T, class P, int V, bool silu>(T, P, std::integral_constant<int, V>, std::bool_constant<silu>) {
        const dim3 grid = set_tiles<V>(k);
        if (partials > 0) DEEM_LAUNCH((channel_gradients_kernel<silu, T, P, V>), grid, dim3(kThreads), 0, stream(), k);
        if (a.dw) sum_partials(k.first, k.n * k.blocks, k.channels, a.dw, a.db);
        if (!a.dx || partials == 0) return;
        DEEM_LAUNCH((group_means_kernel<P>), dim3(unsigned(k.n * k.groups)), dim3(128), 0, stream(), k);
        DEEM_LAUNCH((dx_kernel<silu, T, P, V>), grid, dim3(kThreads), 0, stream(), k);
      });
}

}  // namespace

DEEM_CUDA_KERNEL("group_norm", forward);
DEEM_CUDA_KERNEL("group_norm_backward", backward);

}  // namespace deem::cuda
