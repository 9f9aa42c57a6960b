#include "cuda/kernels/conv_product.cuh"
#include "cuda/slot.h"

namespace deem::cuda {

// dbias [cols] = the sum of dy's rows: threads of a block take every 8th row, and their sums are added in order.
template <class T>
__global__ void bias_gradient_kernel(const T* dy, T* dbias, int64_t rows, int cols) {
  DEEM_SHARED(float, sums, 8 * 32);
  const int column = int(blockIdx.x) * 32 + int(threadIdx.x) % 32, lane = int(threadIdx.x) / 32;
  float sum = 0;
  if (column < cols)
    for (int64_t r = lane; r < rows; r += 8) sum += to_float(dy[r * cols + column]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (lane || column >= cols) return;
  for (int i = 1; i < 8; i++) sum += sums[i * 32 + threadIdx.x];
  dbias[column] = from_float<T>(sum);
}

static void conv_weights(const ConvWeightsArgs& a) {
  using namespace conv;
  const ConvSizes& s = a.s;
  check_sizes(s);
  const int64_t pixels = s.n * s.oh * s.ow;
  dispatch(s.dtype, "conv2d_backward_weights", [&]<class T>(T) {
    if (a.dbias)
      DEEM_LAUNCH((bias_gradient_kernel<T>), dim3(uint32_t((s.out + 31) / 32)), dim3(256), 0, stream(),
                  static_cast<const T*>(a.dy), static_cast<T*>(a.dbias), pixels, int(s.out));
    if (s.groups > 1) return depthwise_weights(s, a.x, a.dy, a.dweight, s.dtype);
    const int64_t columns = s.kh * s.kw * s.in;
    Weights<T> p{};
    p.a = {static_cast<const T*>(a.dy), int(s.out), grain_of<T>(a.dy, s.out), pixels};
    p.b.map = map_of<T>(a.x, s.n, s.h, s.w, s.in, s.oh, s.ow);
    p.b.map.step = int(s.stride), p.b.map.top = -int(s.pad_top), p.b.map.left = -int(s.pad_left);
    p.b.map.taps = int(columns);
    p.b.map.per_tap_row = Divisor(s.kw);
    p.b.grain = grain_of<T>(a.x, s.in);
    p.out = output_of<T>(a.dweight, nullptr, s.out, columns);
    // A part's pixels are counted in 32 bits.
    run_product(p,
                {.m = s.out, .n = columns, .depth = pixels, .long_depth = true, .least_splits = pixels / kMostMap + 1});
  });
}

DEEM_CUDA_KERNEL("conv2d_backward_weights", conv_weights);

}  // namespace deem::cuda
