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

// Taps of one axis that read input i: tap, tap + stride, ..., from outputs out, out - 1, ... as long as those exist.
struct Readers {
  int64_t tap, out, count;
};
DEEM_INLINE Readers readers(int64_t i, int64_t taps, int64_t pad, int64_t stride, int64_t outputs) {
  int64_t tap = (i + pad) % stride, out = (i + pad) / stride;
  if (out >= outputs) tap += (out - outputs + 1) * stride, out = outputs - 1;
  const int64_t left = tap < taps ? ceil_div(taps - tap, stride) : 0;
  return {tap, out, min(left, out + 1)};
}

template <class T>
static void col2im_row(const Col2imArgs& a, int64_t n, int64_t y) {
  constexpr int64_t kBlock = 256;
  const ConvSizes& s = a.s;
  const int64_t patch = s.kh * s.kw * s.in;
  const Readers down = readers(y, s.kh, s.pad_top, s.stride, s.oh);
  for (int64_t x = 0; x < s.w; x++) {
    const Readers across = readers(x, s.kw, s.pad_left, s.stride, s.ow);
    T* to = (T*)a.dx + ((n * s.h + y) * s.w + x) * s.in;
    for (int64_t c = 0; c < s.in; c += kBlock) {
      float sum[kBlock];
      const int64_t channels = min(kBlock, s.in - c);
      for (int64_t k = 0; k < channels; k++) sum[k] = 0;
      for (int64_t i = 0; i < down.count; i++)
        for (int64_t j = 0; j < across.count; j++) {
          const int64_t output = (n * s.oh + down.out - i) * s.ow + across.out - j;
          const int64_t tap = (down.tap + i * s.stride) * s.kw + across.tap + j * s.stride;
          const float* from = a.col + output * patch + tap * s.in + c;
#pragma omp simd
          for (int64_t k = 0; k < channels; k++) sum[k] += from[k];
        }
#pragma omp simd
      for (int64_t k = 0; k < channels; k++) store(to + c + k, sum[k]);
    }
  }
}

static void col2im(const Col2imArgs& a) {
  const ConvSizes& s = a.s;
  dispatch_float(s.dtype, "col2im", [&]<class T>(T) {
    parallel_for(s.n * s.h, s.w * s.kh * s.kw * s.in, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) col2im_row<T>(a, r / s.h, r % s.h);
    });
  });
}

static const Register r1{im2col_kernel, Device::cpu, im2col};
static const Register r2{col2im_kernel, Device::cpu, col2im};

}  // namespace deem::DEEM_ISA
