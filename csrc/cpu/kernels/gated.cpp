#include "ops/gated.h"

#include "cpu/stream.h"

namespace deem::DEEM_ISA {

template <class T>
static void geglu_row(const T* a, const T* b, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float v = load(b + i);
    store(y + i, load(a + i) * v * normal_cdf(v));
  }
}

template <class T>
static void swiglu_row(const T* a, const T* b, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float u = load(a + i);
    store(y + i, u * sigmoid(u) * load(b + i));
  }
}

template <class T>
static void geglu_backward_row(const T* dy, const T* a, const T* b, T* da, T* db, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float g = load(dy + i), v = load(b + i), cdf = normal_cdf(v);
    store(da + i, g * v * cdf);
    store(db + i, g * load(a + i) * (cdf + v * normal_pdf(v)));
  }
}

template <class T>
static void swiglu_backward_row(const T* dy, const T* a, const T* b, T* da, T* db, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float g = load(dy + i), u = load(a + i), s = sigmoid(u);
    store(da + i, g * load(b + i) * s * (1.0f + u * (1.0f - s)));
    store(db + i, g * u * s);
  }
}

static void gated(const GatedArgs& a) {
  dispatch_float(a.dtype, "gated", [&]<class T>(T) {
    parallel_for(a.rows, a.n * 8, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        const T* x = (const T*)a.x + r * 2 * a.n;
        produce((T*)a.y + r * a.n, 0, a.n, is_streamed<T>(a.rows * a.n), [&](T* to, int64_t first, int64_t count) {
          if (a.gate == Gate::geglu) geglu_row(x + first, x + a.n + first, to, count);
          else swiglu_row(x + first, x + a.n + first, to, count);
        });
      }
    });
  });
}

static void gated_backward(const GatedBackwardArgs& a) {
  dispatch_float(a.dtype, "gated_backward", [&]<class T>(T) {
    parallel_for(a.rows, a.n * 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        const T *dy = (const T*)a.dy + r * a.n, *x = (const T*)a.x + r * 2 * a.n;
        T* dx = (T*)a.dx + r * 2 * a.n;
        if (a.gate == Gate::geglu) geglu_backward_row(dy, x, x + a.n, dx, dx + a.n, a.n);
        else swiglu_backward_row(dy, x, x + a.n, dx, dx + a.n, a.n);
      }
    });
  });
}

static const Register r1{gated_kernel, Device::cpu, gated};
static const Register r2{gated_backward_kernel, Device::cpu, gated_backward};

}  // namespace deem::DEEM_ISA
