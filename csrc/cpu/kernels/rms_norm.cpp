#include "ops/rms_norm.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

// Not inlined: in the middle of a larger body GCC 12 does worse with the sum.
template <class T, class P>
[[gnu::noinline]] static void forward_row(const T* x, const P* w, T* y, float* rstd_out, int64_t n, float eps) {
  float square[1];
  sum_over(
      n,
      square, [&](int64_t i, float(&term)[1]) __attribute__((always_inline)) { term[0] = load(x + i) * load(x + i); });
  const float rstd = 1.0f / std::sqrt(square[0] / float(n) + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) store(y + i, load(x + i) * rstd * load(w + i));
  *rstd_out = rstd;
}

template <class T, class P>
static void backward_row(const T* dy, const T* x, const P* w, float rstd, T* dx, int64_t n) {
  float sum[1];
  sum_over(
      n, sum, [&](int64_t i, float(&term)[1]) __attribute__((always_inline)) {
        term[0] = load(dy + i) * load(w + i) * (load(x + i) * rstd);
      });
  const float mean = sum[0] / float(n);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) store(dx + i, rstd * (load(dy + i) * load(w + i) - load(x + i) * rstd * mean));
}

template <class T>
static void add_param_row(const T* dy, const T* x, float rstd, float* dw, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) dw[i] += load(dy + i) * (load(x + i) * rstd);
}

template <class F>
DEEM_INLINE void dispatch_pair(DType dtype, DType param, const char* op, F&& f) {
  dispatch_float(dtype, op, [&]<class T>(T t) {
    if (param == DType::f32) f(t, float{});
    else f(t, t);
  });
}

static void forward(const RmsNormArgs& a) {
  dispatch_pair(a.dtype, a.param_dtype, "rms_norm", [&]<class T, class P>(T, P) {
    parallel_for(a.rows, a.cols * 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        forward_row((const T*)a.x + r * a.cols, (const P*)a.w, (T*)a.y + r * a.cols, a.rstd + r, a.cols, a.eps);
    });
  });
}

static void backward(const RmsNormBackwardArgs& a) {
  dispatch_pair(a.dtype, a.param_dtype, "rms_norm_backward", [&]<class T, class P>(T, P) {
    const T *dy = (const T*)a.dy, *x = (const T*)a.x;
    parallel_for(a.chunks, a.rows * a.cols * 8 / a.chunks + 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k++) {
        float* part = a.part ? a.part + k * a.cols : nullptr;
        if (part)
          for (int64_t i = 0; i < a.cols; i++) part[i] = 0;
        for (int64_t r = a.rows * k / a.chunks; r < a.rows * (k + 1) / a.chunks; r++) {
          const T *dyr = dy + r * a.cols, *xr = x + r * a.cols;
          if (a.dx) backward_row(dyr, xr, (const P*)a.w, a.rstd[r], (T*)a.dx + r * a.cols, a.cols);
          if (part) add_param_row(dyr, xr, a.rstd[r], part, a.cols);
        }
      }
    });
  });
  if (!a.dw) return;
  for (int64_t i = 0; i < a.cols; i++) a.dw[i] = 0;
  for (int64_t k = 0; k < a.chunks; k++) {
    const float* part = a.part + k * a.cols;
#pragma omp simd
    for (int64_t i = 0; i < a.cols; i++) a.dw[i] += part[i];
  }
}

static const Register r1{rms_norm_kernel, Device::cpu, forward};
static const Register r2{rms_norm_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
