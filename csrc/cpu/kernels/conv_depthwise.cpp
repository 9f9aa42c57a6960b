#include "cpu/simd.h"
#include "ops/conv.h"

namespace deem::DEEM_ISA {

// One image and chunk of output rows: every tap's sum over positions, channels innermost.
template <class T>
static void partial(const ConvSizes& s, const T* x, const T* dy, float* sums, int64_t row_begin, int64_t row_end) {
  int64_t c = s.in;
  for (int64_t i = 0; i < s.kh * s.kw * c; i++) sums[i] = 0;
  for (int64_t kh = 0; kh < s.kh; kh++)
    for (int64_t kw = 0; kw < s.kw; kw++) {
      float* sum = sums + (kh * s.kw + kw) * c;
      for (int64_t i = row_begin; i < row_end; i++) {
        int64_t ih = i * s.stride + kh - s.pad_top;
        if (ih < 0 || ih >= s.h) continue;
        for (int64_t j = 0; j < s.ow; j++) {
          int64_t iw = j * s.stride + kw - s.pad_left;
          if (iw < 0 || iw >= s.w) continue;
          const T *xp = x + (ih * s.w + iw) * c, *gp = dy + (i * s.ow + j) * c;
#pragma omp simd
          for (int64_t k = 0; k < c; k++) sum[k] += load(xp + k) * load(gp + k);
        }
      }
    }
}

static void weights(const DepthwiseWeightsArgs& a) {
  const ConvSizes& s = a.s;
  int64_t taps = s.kh * s.kw, c = s.in, parts = s.n * a.chunks;
  dispatch_float(s.dtype, "depthwise_backward_weights", [&]<class T>(T) {
    parallel_for(parts, s.oh * s.ow * taps * c / a.chunks, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++) {
        int64_t n = p / a.chunks, k = p % a.chunks;
        partial((const ConvSizes&)s, (const T*)a.x + n * s.h * s.w * c, (const T*)a.dy + n * s.oh * s.ow * c,
                a.scratch + p * taps * c, s.oh * k / a.chunks, s.oh * (k + 1) / a.chunks);
      }
    });
  });
  parallel_for(c, parts * taps, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < taps; t++)
      for (int64_t k = begin; k < end; k++) {
        float sum = 0;
        for (int64_t p = 0; p < parts; p++) sum += a.scratch[(p * taps + t) * c + k];
        a.dweight[k * taps + t] = sum;
      }
  });
}

static const Register r{depthwise_weights_kernel, Device::cpu, weights};

}  // namespace deem::DEEM_ISA
