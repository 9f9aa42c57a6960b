// The weight gradient of convolutions of each channel by itself: sums of every image and chunk of output rows, then their sum.
#include <optional>

#include "cuda/kernels/conv_operands.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace conv {

struct DepthwiseParts {
  int h, w, c, kh, kw, oh, ow, stride, top, left, chunks;
  int vectors_per_block, vector_blocks, lanes;  // threads of a block: vectors of V channels, by rows of taps or taps
};

// partial [images * chunks, taps, c]. KW > 0, stride 1: a thread sums a row of KW taps, its window of x slides along the row.
// KW == 0: a thread sums single taps.
template <class T, int KW, int V>
__global__ void __launch_bounds__(256, 1)
    depthwise_partial_kernel(const T* x, const T* dy, float* partial, const DepthwiseParts s) {
  const int64_t part = blockIdx.x / uint32_t(s.vector_blocks), image = part / s.chunks;
  const int chunk = int(part % s.chunks), lane = int(threadIdx.x) / s.vectors_per_block;
  const int vector =
      int(blockIdx.x % uint32_t(s.vector_blocks)) * s.vectors_per_block + int(threadIdx.x) % s.vectors_per_block;
  const int channel = vector * V;
  if (channel >= s.c || lane >= s.lanes) return;
  const int begin = int(int64_t(s.oh) * chunk / s.chunks), end = int(int64_t(s.oh) * (chunk + 1) / s.chunks);
  const T* in = x + image * s.h * s.w * s.c + channel;
  const T* out = dy + image * s.oh * s.ow * s.c + channel;
  float* to = partial + part * s.kh * s.kw * s.c + channel;

  if constexpr (KW > 0) {
    for (int kh = lane; kh < s.kh; kh += s.lanes) {
      float sums[KW][V] = {};
      for (int i = begin; i < end; i++) {
        const int ih = i + kh - s.top;
        if (ih < 0 || ih >= s.h) continue;
        const T *line = in + int64_t(ih) * s.w * s.c, *gradient = out + int64_t(i) * s.ow * s.c;
        float window[KW][V];  // column j + k - left of x is in window[(j + k) % KW]
        auto load = [&](float(&to)[V], int column) {
          if (column >= 0 && column < s.w) {
            load_float<V>(line + int64_t(column) * s.c, to);
          } else {
#pragma unroll
            for (int v = 0; v < V; v++) to[v] = 0;
          }
        };
#pragma unroll
        for (int k = 0; k < KW - 1; k++) load(window[k], k - s.left);
        for (int base = 0; base < s.ow; base += KW) {
#pragma unroll
          for (int u = 0; u < KW; u++) {
            const int j = base + u;
            if (j >= s.ow) break;
            load(window[(u + KW - 1) % KW], j + KW - 1 - s.left);
            float g[V];
            load_float<V>(gradient + int64_t(j) * s.c, g);
#pragma unroll
            for (int k = 0; k < KW; k++)
#pragma unroll
              for (int v = 0; v < V; v++) sums[k][v] = fmaf(window[(u + k) % KW][v], g[v], sums[k][v]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < KW; k++) store_float<V>(to + int64_t(kh * KW + k) * s.c, sums[k]);
    }
  } else {
    for (int tap = lane; tap < s.kh * s.kw; tap += s.lanes) {
      const int kh = tap / s.kw, kw = tap % s.kw;
      float sums[V] = {};
      for (int i = begin; i < end; i++) {
        const int ih = i * s.stride + kh - s.top;
        if (ih < 0 || ih >= s.h) continue;
        for (int j = 0; j < s.ow; j++) {
          const int iw = j * s.stride + kw - s.left;
          if (iw < 0 || iw >= s.w) continue;
          float a[V], g[V];
          load_float<V>(in + (int64_t(ih) * s.w + iw) * s.c, a);
          load_float<V>(out + (int64_t(i) * s.ow + j) * s.c, g);
#pragma unroll
          for (int v = 0; v < V; v++) sums[v] = fmaf(a[v], g[v], sums[v]);
        }
      }
      store_float<V>(to + int64_t(tap) * s.c, sums);
    }
  }
}

// dweight [c, taps] of partial [parts, taps, c]: 8 threads take every 8th part each, and their sums are added in order.
template <class W>
__global__ void __launch_bounds__(256, 1)
    depthwise_sum_kernel(const float* partial, W* dweight, int64_t parts, int c, int taps) {
  DEEM_SHARED(float, sums, 256);
  const int64_t count = int64_t(c) * taps, i = int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  const int lane = int(threadIdx.x) / 32;
  float sum = 0;
  if (i < count)
    for (int64_t p = lane; p < parts; p += 8) sum += partial[p * count + i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (lane || i >= count) return;
  for (int k = 1; k < 8; k++) sum += sums[k * 32 + threadIdx.x];
  dweight[i % c * taps + i / c] = from_float<W>(sum);
}

constexpr int64_t kPartialBlocks = 512;  // the parts are as many as give about so many blocks; the shape alone decides

template <class T, int V>
static void run_partial(const ConvSizes& s, const void* x, const void* dy, DepthwiseParts d, Scratch<float>& partial) {
  auto launch = [&](auto kernel) {
    DEEM_LAUNCH(kernel, dim3(uint32_t(s.n * d.chunks * d.vector_blocks)), dim3(d.vectors_per_block * d.lanes), 0,
                stream(), static_cast<const T*>(x), static_cast<const T*>(dy), partial.data(), d);
  };
  if (s.stride != 1) launch(depthwise_partial_kernel<T, 0, V>);
  else if (s.kw == 7) launch(depthwise_partial_kernel<T, 7, V>);
  else if (s.kw == 5) launch(depthwise_partial_kernel<T, 5, V>);
  else if (s.kw == 3) launch(depthwise_partial_kernel<T, 3, V>);
  else launch(depthwise_partial_kernel<T, 0, V>);
}

void depthwise_weights(const ConvSizes& s, const void* x, const void* dy, void* dweight, DType dweight_type) {
  check_sizes(s);
  const bool sliding = s.stride == 1 && (s.kw == 3 || s.kw == 5 || s.kw == 7);
  const int64_t taps = s.kh * s.kw, count = taps * s.in;
  int64_t parts = 0;
  std::optional<Scratch<float>> partial;
  dispatch(s.dtype, "depthwise_backward_weights", [&]<class T>(T) {
    const bool vectors = grain_of<T>(x, s.in) >= 4 && grain_of<T>(dy, s.in) >= 4;
    const int64_t width = vectors ? s.in / 4 : s.in, lanes = std::min<int64_t>(sliding ? s.kh : taps, 8);
    const int64_t per_block = std::min<int64_t>(width, 32), blocks = (width + per_block - 1) / per_block;
    const int64_t chunks = std::clamp<int64_t>(kPartialBlocks / std::max<int64_t>(s.n * blocks, 1), 1, s.oh);
    parts = s.n * chunks;
    check<ShapeError>(parts * blocks < int64_t(1) << 31, "[conv2d] cuda takes at most 2^31 blocks");
    if (parts == 0) return;
    partial.emplace(parts * count);
    const DepthwiseParts d{int(s.h),    int(s.w),       int(s.in),     int(s.kh),      int(s.kw),
                           int(s.oh),   int(s.ow),      int(s.stride), int(s.pad_top), int(s.pad_left),
                           int(chunks), int(per_block), int(blocks),   int(lanes)};
    if (vectors) run_partial<T, 4>(s, x, dy, d, *partial);
    else run_partial<T, 1>(s, x, dy, d, *partial);
  });
  dispatch(dweight_type, "depthwise_backward_weights", [&]<class W>(W) {
    DEEM_LAUNCH((depthwise_sum_kernel<W>), dim3(uint32_t((count + 31) / 32)), dim3(256), 0, stream(),
                partial ? partial->data() : nullptr, static_cast<W*>(dweight), parts, int(s.in), int(taps));
  });
}

}  // namespace conv

static void depthwise_weights(const DepthwiseWeightsArgs& a) {
  conv::depthwise_weights(a.s, a.x, a.dy, a.dweight, DType::f32);
}

DEEM_CUDA_KERNEL("depthwise_backward_weights", depthwise_weights);

}  // namespace deem::cuda
