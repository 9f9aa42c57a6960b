#include "ops/loss.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

template <class T>
static void forward_row(const T* x, int64_t label, int64_t n, float* lse, float* loss) {
  float top = -__builtin_inff(), sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; i++) top = max(top, load(x + i));
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += exp(load(x + i) - top);
  float log_sum = __builtin_logf(sum);
  *lse = top + log_sum;
  *loss = (top - load(x + label)) + log_sum;
}

template <class T>
static void backward_row(const T* x, int64_t label, int64_t n, float lse, float scale, T* dx) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) store(dx + i, exp(load(x + i) - lse) * scale);
  store(dx + label, (exp(load(x + label) - lse) - 1.0f) * scale);
}

static void forward(const CrossEntropyArgs& a) {
  dispatch_float(a.dtype, "cross_entropy", [&]<class T>(T) {
    parallel_for(a.rows, a.cols * 20, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        a.lse[r] = a.loss[r] = 0;
        if (a.labels[r] != a.ignore_index)
          forward_row((const T*)a.logits + r * a.cols, a.labels[r], a.cols, a.lse + r, a.loss + r);
      }
    });
  });
}

static void backward(const CrossEntropyBackwardArgs& a) {
  const float scale = a.kept ? float(double(*a.dy) / double(a.kept)) : 0.0f;
  dispatch_float(a.dtype, "cross_entropy_backward", [&]<class T>(T) {
    parallel_for(a.rows, a.cols * 20, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        T* dx = (T*)a.dlogits + r * a.cols;
        if (a.labels[r] != a.ignore_index) {
          backward_row((const T*)a.logits + r * a.cols, a.labels[r], a.cols, a.lse[r], scale, dx);
        } else {
#pragma omp simd
          for (int64_t i = 0; i < a.cols; i++) store(dx + i, 0.0f);
        }
      }
    });
  });
}

static const Register r1{cross_entropy_kernel, Device::cpu, forward};
static const Register r2{cross_entropy_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
