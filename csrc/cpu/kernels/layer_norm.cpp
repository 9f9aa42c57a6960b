#include "ops/layer_norm.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

template <class T, class P>
static void forward_row(const T* x, const P* w, const P* b, T* y, float* mean_out, float* rstd_out, int64_t n,
                        float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += load(x + i);
  float mean = sum / float(n), square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; i++) {
    float d = load(x + i) - mean;
    square += d * d;
  }
  float rstd = 1.0f / std::sqrt(square / float(n) + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) store(y + i, (load(x + i) - mean) * rstd * load(w + i) + load(b + i));
  *mean_out = mean;
  *rstd_out = rstd;
}

template <class T, class P>
static void backward_row(const T* dy, const T* x, const P* w, float mean, float rstd, T* dx, int64_t n) {
  float sum_g = 0, sum_gx = 0;
#pragma omp simd reduction(+ : sum_g, sum_gx)
  for (int64_t i = 0; i < n; i++) {
    float g = load(dy + i) * load(w + i);
    sum_g += g;
    sum_gx += g * (load(x + i) - mean) * rstd;
  }
  float a = sum_g / float(n), b = sum_gx / float(n);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float xhat = (load(x + i) - mean) * rstd;
    store(dx + i, rstd * (load(dy + i) * load(w + i) - a - xhat * b));
  }
}

// Columns are split between threads and rows run in order, so the sums do not depend on the thread count.
template <class T>
static void backward_params(const LayerNormBackwardArgs& a, const T* dy, const T* x) {
  parallel_for(a.cols, a.rows * 4, [&](int64_t begin, int64_t end) {
    float *dw = a.dw, *db = a.db;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) dw[i] = db[i] = 0;
    for (int64_t r = 0; r < a.rows; r++) {
      const T *dyr = dy + r * a.cols, *xr = x + r * a.cols;
      float mean = a.mean[r], rstd = a.rstd[r];
#pragma omp simd
      for (int64_t i = begin; i < end; i++) {
        float g = load(dyr + i);
        dw[i] += g * (load(xr + i) - mean) * rstd;
        db[i] += g;
      }
    }
  });
}

template <class F>
DEEM_INLINE void dispatch_pair(DType dtype, DType param, const char* op, F&& f) {
  dispatch_float(dtype, op, [&]<class T>(T t) {
    if (param == DType::f32) f(t, float{});
    else f(t, t);
  });
}

static void forward(const LayerNormArgs& a) {
  dispatch_pair(a.dtype, a.param_dtype, "layer_norm", [&]<class T, class P>(T, P) {
    parallel_for(a.rows, a.cols * 6, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        forward_row((const T*)a.x + r * a.cols, (const P*)a.w, (const P*)a.b, (T*)a.y + r * a.cols, a.mean + r,
                    a.rstd + r, a.cols, a.eps);
    });
  });
}

static void backward(const LayerNormBackwardArgs& a) {
  dispatch_pair(a.dtype, a.param_dtype, "layer_norm_backward", [&]<class T, class P>(T, P) {
    const T *dy = (const T*)a.dy, *x = (const T*)a.x;
    if (a.dx)
      parallel_for(a.rows, a.cols * 8, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++)
          backward_row(dy + r * a.cols, x + r * a.cols, (const P*)a.w, a.mean[r], a.rstd[r], (T*)a.dx + r * a.cols,
                       a.cols);
      });
    if (a.dw) backward_params(a, dy, x);
  });
}

static const Register r1{layer_norm_kernel, Device::cpu, forward};
static const Register r2{layer_norm_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
