#include "cpu/im2col.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

static void im2col(const Im2colArgs& a) {
  const ConvSizes& s = a.s;
  const int64_t pixel = s.in * int64_t(size_of(s.dtype)), patch = s.kh * s.kw * pixel;
  parallel_for(s.n * s.oh * s.ow, s.kh * s.kw * s.in, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t n = r / (s.oh * s.ow), oy = r / s.ow % s.oh, ox = r % s.ow;
      char* to = (char*)a.col + r * patch;
      for (int64_t kh = 0; kh < s.kh; kh++) {
        const int64_t y = oy * s.stride + kh - s.pad_top;
        for (int64_t kw = 0; kw < s.kw; kw++, to += pixel) {
          const int64_t x = ox * s.stride + kw - s.pad_left;
          if (y < 0 || y >= s.h || x < 0 || x >= s.w) __builtin_memset(to, 0, size_t(pixel));
          else __builtin_memcpy(to, (const char*)a.x + ((n * s.h + y) * s.w + x) * pixel, size_t(pixel));
        }
      }
    }
  });
}

// Which output reads input i through tap k, or -1.
DEEM_INLINE int64_t reader(int64_t i, int64_t k, int64_t pad, int64_t stride, int64_t count) {
  const int64_t at = i + pad - k;
  return at >= 0 && at % stride == 0 && at / stride < count ? at / stride : -1;
}

template <class T>
static void col2im_pixel(const Col2imArgs& a, int64_t r) {
  constexpr int64_t kBlock = 256;
  const ConvSizes& s = a.s;
  const int64_t n = r / (s.h * s.w), y = r / s.w % s.h, x = r % s.w, taps = s.kh * s.kw;
  for (int64_t c = 0; c < s.in; c += kBlock) {
    float sum[kBlock];
    const int64_t count = min(kBlock, s.in - c);
    for (int64_t i = 0; i < count; i++) sum[i] = 0;
    for (int64_t t = 0; t < taps; t++) {
      const int64_t oy = reader(y, t / s.kw, s.pad_top, s.stride, s.oh);
      const int64_t ox = reader(x, t % s.kw, s.pad_left, s.stride, s.ow);
      if (oy < 0 || ox < 0) continue;
      const float* from = a.col + (((n * s.oh + oy) * s.ow + ox) * taps + t) * s.in + c;
#pragma omp simd
      for (int64_t i = 0; i < count; i++) sum[i] += from[i];
    }
    T* to = (T*)a.dx + r * s.in + c;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) store(to + i, sum[i]);
  }
}

static void col2im(const Col2imArgs& a) {
  const ConvSizes& s = a.s;
  dispatch_float(s.dtype, "col2im", [&]<class T>(T) {
    parallel_for(s.n * s.h * s.w, s.kh * s.kw * s.in, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) col2im_pixel<T>(a, r);
    });
  });
}

static const Register r1{im2col_kernel, Device::cpu, im2col};
static const Register r2{col2im_kernel, Device::cpu, col2im};

}  // namespace deem::DEEM_ISA
