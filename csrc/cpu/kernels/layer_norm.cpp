#include "ops/layer_norm.h"

#include "core/memory.h"
#include "cpu/kernels/words.h"
#include "cpu/row.h"

namespace deem::DEEM_ISA {

template <class T, class P>
static void forward_row(const T* x, const P* w, const P* b, T* y, float* mean_out, float* rstd_out, int64_t n,
                        float eps) {
  Vec sum[kSums] = {}, square[kSums] = {};
  for_row(n, [&](int64_t i, int k, auto part) DEEM_ALWAYS { sum[k] += get(x + i, part); });
  const float mean = total(sum) / float(n);
  for_row(n, [&](int64_t i, int k, auto part) DEEM_ALWAYS {
    const Vec d = within(get(x + i, part) - mean, part);
    square[k] += d * d;
  });
  const float rstd = 1.0f / std::sqrt(total(square) / float(n) + eps);
  for_row(n, [&](int64_t i, int, auto part) DEEM_ALWAYS {
    put(y + i, (get(x + i, part) - mean) * rstd * get(w + i, part) + get(b + i, part), part);
  });
  *mean_out = mean;
  *rstd_out = rstd;
}

#if DEEM_ISA_INDEX >= 3
// The same by words, whose sum takes no widening: products by ones are added in pairs.
static void forward_words(const bf16* x, const bf16* w, const bf16* b, bf16* y, float* mean_out, float* rstd_out,
                          int64_t n, float eps) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  __m512 sum[2] = {};
  for_words(n, [&](int64_t i, int k, auto part)
                   DEEM_ALWAYS { sum[k] = _mm512_dpbf16_ps(sum[k], (__m512bh)get_words(x + i, part), ones); });
  const float mean = add_lanes((Vec)sum[0] + (Vec)sum[1]) / float(n);
  Vec square[kSums] = {};
  for_words(n, [&](int64_t i, int k, auto part) DEEM_ALWAYS {
    const __m512i words = get_words(x + i, part);
    const Vec even = within_even(even_of(words) - mean, part), odd = within_odd(odd_of(words) - mean, part);
    square[2 * k] += even * even;
    square[2 * k + 1] += odd * odd;
  });
  const float rstd = 1.0f / std::sqrt(total(square) / float(n) + eps);
  for_words(n, [&](int64_t i, int, auto part) DEEM_ALWAYS {
    const __m512i words = get_words(x + i, part), scale = get_words(w + i, part), shift = get_words(b + i, part);
    const Vec even = (even_of(words) - mean) * rstd * even_of(scale) + even_of(shift);
    const Vec odd = (odd_of(words) - mean) * rstd * odd_of(scale) + odd_of(shift);
    put_words(y + i, round_to_words(even, odd), part);
  });
  *mean_out = mean;
  *rstd_out = rstd;
}
#endif

// dx, and what a row adds to dw and db; either may be null.
template <class T, class P>
static void backward_row(const T* dy, const T* x, const P* w, float mean, float rstd, T* dx, float* dw, float* db,
                         int64_t n) {
  Vec g_sum[kSums] = {}, gx_sum[kSums] = {};  // of g = dy w and of g xhat
  for_row(n, [&](int64_t i, int k, auto part) DEEM_ALWAYS {
    const Vec d = get(dy + i, part), xhat = (get(x + i, part) - mean) * rstd;
    if (dw) {
      put(dw + i, get(dw + i, part) + d * xhat, part);
      put(db + i, get(db + i, part) + d, part);
    }
    const Vec g = d * get(w + i, part);
    g_sum[k] += g;
    gx_sum[k] += g * xhat;
  });
  if (!dx) return;
  const float a = total(g_sum) / float(n), b = total(gx_sum) / float(n);
  for_row(n, [&](int64_t i, int, auto part) DEEM_ALWAYS {
    const Vec xhat = (get(x + i, part) - mean) * rstd;
    put(dx + i, rstd * (get(dy + i, part) * get(w + i, part) - a - xhat * b), part);
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
      for (int64_t r = begin; r < end; r++) {
        const T* x = (const T*)a.x + r * a.cols;
        T* y = (T*)a.y + r * a.cols;
#if DEEM_ISA_INDEX >= 3
        if constexpr (dtype_of<P>::value == DType::bf16) {
          forward_words(x, (const P*)a.w, (const P*)a.b, y, a.mean + r, a.rstd + r, a.cols, a.eps);
          continue;
        }
#endif
        forward_row(x, (const P*)a.w, (const P*)a.b, y, a.mean + r, a.rstd + r, a.cols, a.eps);
      }
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
  float* parts = a.dw ? (float*)allocate_scratch(bytes) : nullptr;
  parallel_for(chunks, a.rows * cols * 12 / max<int64_t>(1, chunks) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) {
      float *dw = parts ? parts + 2 * k * cols : nullptr, *db = parts ? dw + cols : nullptr;
      if (parts)
        for (int64_t i = 0; i < cols; i++) dw[i] = db[i] = 0;
      for (int64_t r = a.rows * k / chunks; r < a.rows * (k + 1) / chunks; r++) {
        T* dx = a.dx ? (T*)a.dx + r * cols : nullptr;
        backward_row(dy + r * cols, x + r * cols, (const P*)a.w, a.mean[r], a.rstd[r], dx, dw, db, cols);
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
