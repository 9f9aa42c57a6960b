// Convolutions of each channel by itself: forward and data gradient. A thread has V neighbouring channels.
#include "cuda/kernels/conv_operands.cuh"

namespace deem::cuda::conv {

constexpr int kColumns = 8;  // outputs of a row that a thread of the stride 1 kernel makes
constexpr int kThreads = 128;

// Filters [c, taps] as f32 [taps, c], from the last tap on if flipped.
template <class T>
__global__ void pack_filters_kernel(const T* filters, float* packed, int c, int taps, bool flipped) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= int64_t(c) * taps) return;
  const int channel = int(i / taps), tap = int(i % taps);
  packed[int64_t(flipped ? taps - 1 - tap : tap) * c + channel] = to_float(filters[i]);
}

struct Depthwise {
  int n, h, w, c, kh, kw, oh, ow, stride, top, left;  // of the map that is read (h, w) and the one that is written
  Divisor vectors = {}, groups = {};                  // channels / V; groups of columns in a row
};

// Stride 1: 8 outputs of a row, so that a vector of the input is loaded once for them and a row of taps stays in registers.
// `top` and `left` may be negative: the data gradient is the same with flipped filters and what padding then remains.
template <class T, int KW, int V>
__global__ void __launch_bounds__(kThreads)
    depthwise_rows_kernel(const T* x, const float* filters, const T* bias, T* y, const Depthwise s) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x, rest = s.vectors.quotient(index);
  const uint32_t row = s.groups.quotient(rest);
  const int channel = int(index - rest * s.vectors.d) * V, column = int(rest - row * s.groups.d) * kColumns;
  if (int(row) >= s.oh) return;
  float offset[V] = {};
  if (bias) load_float<V>(bias + channel, offset);
  for (int64_t image = blockIdx.y; image < s.n; image += gridDim.y) {
    const T* from = x + image * s.h * s.w * s.c + channel;
    float sums[kColumns][V];
#pragma unroll
    for (int j = 0; j < kColumns; j++)
#pragma unroll
      for (int v = 0; v < V; v++) sums[j][v] = offset[v];
    for (int kh = 0; kh < s.kh; kh++) {
      const int ih = int(row) + kh - s.top;
      if (ih < 0 || ih >= s.h) continue;
      const T* line = from + int64_t(ih) * s.w * s.c;
      float taps[KW][V];
#pragma unroll
      for (int k = 0; k < KW; k++) load_float<V>(filters + int64_t(kh * KW + k) * s.c + channel, taps[k]);
#pragma unroll
      for (int i = 0; i < kColumns + KW - 1; i++) {
        const int iw = column + i - s.left;
        if (iw < 0 || iw >= s.w) continue;
        float in[V];
        load_float<V>(line + int64_t(iw) * s.c, in);
#pragma unroll
        for (int j = 0; j < kColumns; j++)
          if (i - j >= 0 && i - j < KW)
#pragma unroll
            for (int v = 0; v < V; v++)
              sums[j][v] = fmaf(in[v], taps[i - j >= 0 && i - j < KW ? i - j : 0][v], sums[j][v]);
      }
    }
    T* to = y + ((image * s.oh + row) * s.ow + column) * s.c + channel;
#pragma unroll
    for (int j = 0; j < kColumns; j++)
      if (column + j < s.ow) store_float<V>(to + int64_t(j) * s.c, sums[j]);
  }
}

// Any stride, one pixel a thread. DATA: x is dy, y is dx, and a tap counts where its stride divides.
template <class T, int V, bool DATA>
__global__ void __launch_bounds__(kThreads)
    depthwise_points_kernel(const T* x, const float* filters, const T* bias, T* y, const Depthwise s) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x, rest = s.vectors.quotient(index);
  const uint32_t row = s.groups.quotient(rest);
  const int channel = int(index - rest * s.vectors.d) * V, column = int(rest - row * s.groups.d);
  if (int(row) >= s.oh) return;
  const int ih0 = DATA ? int(row) + s.top : int(row) * s.stride - s.top;
  const int iw0 = DATA ? column + s.left : column * s.stride - s.left;
  const int step = DATA ? s.stride : 1;
  for (int64_t image = blockIdx.y; image < s.n; image += gridDim.y) {
    const T* from = x + image * s.h * s.w * s.c + channel;
    float sums[V] = {};
    if (bias) load_float<V>(bias + channel, sums);
    for (int kh = DATA ? ih0 % step : 0; kh < s.kh; kh += step) {
      const int ih = DATA ? (ih0 - kh) / step : ih0 + kh;
      if (DATA ? ih0 < kh || ih >= s.h : ih < 0 || ih >= s.h) continue;
      for (int kw = DATA ? iw0 % step : 0; kw < s.kw; kw += step) {
        const int iw = DATA ? (iw0 - kw) / step : iw0 + kw;
        if (DATA ? iw0 < kw || iw >= s.w : iw < 0 || iw >= s.w) continue;
        float in[V], tap[V];
        load_float<V>(from + (int64_t(ih) * s.w + iw) * s.c, in);
        load_float<V>(filters + int64_t(kh * s.kw + kw) * s.c + channel, tap);
#pragma unroll
        for (int v = 0; v < V; v++) sums[v] = fmaf(in[v], tap[v], sums[v]);
      }
    }
    store_float<V>(y + ((image * s.oh + row) * s.ow + column) * s.c + channel, sums);
  }
}

template <class T, int V, bool DATA>
static void run_depthwise(Depthwise s, const void* x, const void* filters, const void* bias, void* y) {
  const int taps = s.kh * s.kw;
  const bool rows = s.stride == 1 && (s.kw == 3 || s.kw == 5 || s.kw == 7);
  Scratch<float> packed(int64_t(taps) * s.c);
  DEEM_LAUNCH((pack_filters_kernel<T>), dim3(uint32_t((int64_t(taps) * s.c + kThreads - 1) / kThreads)), dim3(kThreads),
              0, stream(), static_cast<const T*>(filters), packed.data(), s.c, taps, DATA && rows);
  if (rows && DATA) s.top = s.kh - 1 - s.top, s.left = s.kw - 1 - s.left;
  const int64_t groups = rows ? (s.ow + kColumns - 1) / kColumns : s.ow, threads = groups * s.oh * (s.c / V);
  check<ShapeError>(threads < int64_t(1) << 30, "[conv2d] an image is too large for cuda");
  s.vectors = Divisor(s.c / V);
  s.groups = Divisor(groups);
  const dim3 grid(uint32_t((threads + kThreads - 1) / kThreads), uint32_t(std::min(s.n, 65535)));
  auto launch = [&](auto kernel) {
    DEEM_LAUNCH(kernel, grid, dim3(kThreads), 0, stream(), static_cast<const T*>(x), packed.data(),
                static_cast<const T*>(bias), static_cast<T*>(y), s);
  };
  if (!rows) launch(depthwise_points_kernel<T, V, DATA>);
  else if (s.kw == 3) launch(depthwise_rows_kernel<T, 3, V>);
  else if (s.kw == 5) launch(depthwise_rows_kernel<T, 5, V>);
  else launch(depthwise_rows_kernel<T, 7, V>);
}

template <bool DATA>
static void depthwise(const ConvSizes& s, const void* x, const void* filters, const void* bias, void* y) {
  Depthwise d{int(s.n),  int(s.h),  int(s.w),      int(s.in),      int(s.kh),      int(s.kw),
              int(s.oh), int(s.ow), int(s.stride), int(s.pad_top), int(s.pad_left)};
  if (DATA) std::swap(d.h, d.oh), std::swap(d.w, d.ow);
  dispatch(s.dtype, "conv2d", [&]<class T>(T) {
    const bool vectors = grain_of<T>(x, s.in) >= 4 && grain_of<T>(y, s.in) >= 4 && grain_of<T>(bias, s.in) >= 4;
    if (vectors) run_depthwise<T, 4, DATA>(d, x, filters, bias, y);
    else run_depthwise<T, 1, DATA>(d, x, filters, bias, y);
  });
}

void depthwise_forward(const ConvForwardArgs& a) { depthwise<false>(a.s, a.x, a.weight, a.bias, a.y); }
void depthwise_data(const ConvDataArgs& a) { depthwise<true>(a.s, a.dy, a.weight, nullptr, a.dx); }

}  // namespace deem::cuda::conv
