#include "ops/rms_norm.h"

#include "cpu/row.h"

namespace deem::DEEM_ISA {

template <class T, class P>
static void forward_row(const T* x, const P* w, T* y, float* rstd_out, int64_t n, float eps) {
  Vec square[kSums] = {};
  for_row(n, [&](int64_t i, int k, auto part) DEEM_ALWAYS {
    const Vec v = get(x + i, part);
    square[k] += v * v;
  });
  const float rstd = 1.0f / std::sqrt(total(square) / float(n) + eps);
  for_row(n,
          [&](int64_t i, int, auto part) DEEM_ALWAYS { put(y + i, get(x + i, part) * rstd * get(w + i, part), part); });
  *rstd_out = rstd;
}

// dx, and what a row adds to dw; either may be null.
template <class T, class P>
static void backward_row(const T* dy, const T* x, const P* w, float rstd, T* dx, float* dw, int64_t n) {
  Vec sum[kSums] = {};
  for_row(n, [&](int64_t i, int k, auto part) DEEM_ALWAYS {
    const Vec d = get(dy + i, part) * (get(x + i, part) * rstd);
    if (dw) put(dw + i, get(dw + i, part) + d, part);
    sum[k] += d * get(w + i, part);
  });
  if (!dx) return;
  const float mean = total(sum) / float(n);
  for_row(n, [&](int64_t i, int, auto part) DEEM_ALWAYS {
    put(dx + i, rstd * (get(dy + i, part) * get(w + i, part) - get(x + i, part) * rstd * mean), part);
  });
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
          T* dx = a.dx ? (T*)a.dx + r * a.cols : nullptr;
          backward_row(dy + r * a.cols, x + r * a.cols, (const P*)a.w, a.rstd[r], dx, part, a.cols);
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
