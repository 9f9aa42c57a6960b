#include "ops/layer_norm.h"

#include "core/memory.h"
#include "cpu/simd.h"

namespace deem::DEEM_ISA {

template <class T, class P>
static void forward_row(const T* x, const P* w, const P* b, T* y, float* mean_out, float* rstd_out, int64_t n,
                        float eps) {
  float sum[1], square[1];
  sum_over(
      n, sum, [&](int64_t i, float(&term)[1]) __attribute__((always_inline)) { term[0] = load(x + i); });
  const float mean = sum[0] / float(n);
  sum_over(
      n, square, [&](int64_t i, float(&term)[1]) __attribute__((always_inline)) {
        const float d = load(x + i) - mean;
        term[0] = d * d;
      });
  const float rstd = 1.0f / std::sqrt(square[0] / float(n) + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) store(y + i, (load(x + i) - mean) * rstd * load(w + i) + load(b + i));
  *mean_out = mean;
  *rstd_out = rstd;
}

template <class T, class P>
static void backward_row(const T* dy, const T* x, const P* w, float mean, float rstd, T* dx, int64_t n) {
  float sums[2];  // of g and of g * xhat
  sum_over(
      n, sums, [&](int64_t i, float(&term)[2]) __attribute__((always_inline)) {
        const float g = load(dy + i) * load(w + i);
        term[0] = g;
        term[1] = g * (load(x + i) - mean) * rstd;
      });
  const float a = sums[0] / float(n), b = sums[1] / float(n);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float xhat = (load(x + i) - mean) * rstd;
    store(dx + i, rstd * (load(dy + i) * load(w + i) - a - xhat * b));
  }
}

template <class T>
static void add_params(const T* dy, const T* x, float mean, float rstd, float* dw, float* db, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float g = load(dy + i);
    dw[i] += g * (load(x + i) - mean) * rstd;
    db[i] += g;
  }
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

// Where parameters have gradients, rows are taken in chunks whose number depends on sizes alone, and the chunks' sums in order: bits do not
// depend on threads.
template <class T, class P>
static void backward_as(const LayerNormBackwardArgs& a) {
  constexpr int64_t kChunks = 32, kLeast = 8;
  const T *dy = (const T*)a.dy, *x = (const T*)a.x;
  const int64_t cols = a.cols, chunks = a.dw ? max<int64_t>(1, min(kChunks, a.rows / kLeast)) : a.rows;
  const size_t bytes = a.dw ? scratch_size(size_t(2 * chunks * cols) * sizeof(float)) : 0;
  float* parts = a.dw ? (float*)allocate(bytes) : nullptr;
  parallel_for(chunks, a.rows * cols * 12 / max<int64_t>(1, chunks) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) {
      float *dw = parts + 2 * k * cols, *db = dw + cols;
      if (parts)
        for (int64_t i = 0; i < cols; i++) dw[i] = db[i] = 0;
      for (int64_t r = a.rows * k / chunks; r < a.rows * (k + 1) / chunks; r++) {
        const T *dyr = dy + r * cols, *xr = x + r * cols;
        if (a.dx) backward_row(dyr, xr, (const P*)a.w, a.mean[r], a.rstd[r], (T*)a.dx + r * cols, cols);
        if (parts) add_params(dyr, xr, a.mean[r], a.rstd[r], dw, db, cols);
      }
    }
  });
  if (!parts) return;
  for (int64_t i = 0; i < cols; i++) a.dw[i] = a.db[i] = 0;
  for (int64_t k = 0; k < chunks; k++) {
    const float *dw = parts + 2 * k * cols, *db = dw + cols;
#pragma omp simd
    for (int64_t i = 0; i < cols; i++) a.dw[i] += dw[i], a.db[i] += db[i];
  }
  release(parts, bytes);
}

static void backward(const LayerNormBackwardArgs& a) {
  dispatch_pair(a.dtype, a.param_dtype, "layer_norm_backward", [&]<class T, class P>(T, P) { backward_as<T, P>(a); });
}

static const Register r1{layer_norm_kernel, Device::cpu, forward};
static const Register r2{layer_norm_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
