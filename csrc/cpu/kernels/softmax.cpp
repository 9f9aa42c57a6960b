#include "ops/softmax.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

// Rows up to this long keep their exponentials on the stack; longer ones compute them twice.
constexpr int64_t kKept = 8192;

template <class T>
static void forward_row(const T* x, T* y, int64_t n, bool log) {
  float top = -__builtin_inff(), sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; i++) top = max(top, load(x + i));
  if (!log && n <= kKept) {
    alignas(64) float kept[kKept];
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      kept[i] = exp(load(x + i) - top);
      sum += kept[i];
    }
    const float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(y + i, kept[i] * inverse);
    return;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += exp(load(x + i) - top);
  if (log) {
    float log_sum = __builtin_logf(sum);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(y + i, load(x + i) - top - log_sum);
  } else {
    float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(y + i, exp(load(x + i) - top) * inverse);
  }
}

template <class T>
static void backward_row(const T* dy, const T* y, T* dx, int64_t n, bool log) {
  float sum = 0;
  if (log) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += load(dy + i);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(dx + i, load(dy + i) - exp(load(y + i)) * sum);
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += load(dy + i) * load(y + i);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) store(dx + i, load(y + i) * (load(dy + i) - sum));
  }
}

static void forward(const SoftmaxArgs& a) {
  dispatch_float(a.dtype, "softmax", [&]<class T>(T) {
    parallel_for(a.rows, a.cols * 30, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        forward_row((const T*)a.x + r * a.cols, (T*)a.y + r * a.cols, a.cols, a.log);
    });
  });
}

static void backward(const SoftmaxBackwardArgs& a) {
  dispatch_float(a.dtype, "softmax_backward", [&]<class T>(T) {
    parallel_for(a.rows, a.cols * 10, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin * a.cols; r < end * a.cols; r += a.cols)
        backward_row((const T*)a.dy + r, (const T*)a.y + r, (T*)a.dx + r, a.cols, a.log);
    });
  });
}

static const Register r1{softmax_kernel, Device::cpu, forward};
static const Register r2{softmax_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
