#include "cpu/kernels/quantized_row.h"
#if DEEM_ISA_INDEX >= 2
#include "cpu/kernels/quantized_bytes.h"
#elif DEEM_ISA_INDEX == 1
#include "cpu/kernels/quantized_words.h"
#endif

namespace deem::DEEM_ISA {

// Sums of 64 lanes, added up half by half at the end: the result depends on neither threads nor m.
struct Sums {
  float lane[64];
};
DEEM_INLINE float total_of(Sums& sums) {
  for (int half = 32; half > 0; half /= 2)
#pragma omp simd
    for (int k = 0; k < half; k++) sums.lane[k] += sums.lane[k + half];
  return sums.lane[0];
}

DEEM_INLINE void add_products(const float* x, const float* w, int64_t n, Sums& sums) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
#pragma omp simd
    for (int64_t k = 0; k < 64; k++) sums.lane[k] += x[i + k] * w[i + k];
  for (; i < n; i++) sums.lane[i % 64] += x[i] * w[i];
}

// A weight is turned into floats in cache and used for all rows of x.
static void by_floats(const QuantizedGemvArgs& a) {
  const Layout f(a.format);
  const int64_t cols = f.cols;
  with_bits(a.format, [&]<int Bits>() {
    parallel_for(a.rows, cols * (a.m + 1), [&](int64_t begin, int64_t end) {
      alignas(64) float span[kSpan];
      for (int64_t r = begin; r < end; r++) {
        Sums sums[kMostGemvRows] = {};
        for (int64_t c = 0; c < cols; c += kSpan) {
          int64_t n = min(kSpan, cols - c);
          dequantize_span<Bits>(a.packed + r * f.row_bytes, f, c, n, span);
          for (int64_t m = 0; m < a.m; m++) add_products(a.x + m * cols + c, span, n, sums[m]);
        }
        for (int64_t m = 0; m < a.m; m++) {
          const float total = total_of(sums[m]);
          a.y[m * a.rows + r] = a.bias ? total + a.bias[r] : total;
        }
      }
    });
  });
}

#if DEEM_ISA_INDEX >= 1
// Rows begin..end of weights with rows of x from `first` on, as many at a time as M; gives the first row of x that is left.
template <int Bits, int P, int M, bool Symmetric>
static int64_t times_rows(const QuantizedGemvArgs& a, int64_t begin, int64_t end, const Layout& f, int64_t first) {
  const int64_t step = prepared_bytes<Bits, P>(f.cols);
  for (; first + M <= a.m; first += M) {
    const int8_t* x = (const int8_t*)a.scratch + first * step;
    int64_t r = begin;
    for (; r + kRows <= end; r += kRows) rows_by_integers<Bits, P, M, kRows, Symmetric>(a, r, f, first, x, step);
    for (; r < end; r++) rows_by_integers<Bits, P, M, 1, Symmetric>(a, r, f, first, x, step);
  }
  return first;
}

template <int Bits, int P, bool Symmetric>
static bool by_integers(const QuantizedGemvArgs& a) {
  const Layout f(a.format);
  const int64_t step = prepared_bytes<Bits, P>(f.cols);
  for (int64_t m = 0; m < a.m; m++)
    if (!prepare_row<Bits, P>(a.x + m * f.cols, a.format, (int8_t*)a.scratch + m * step)) return false;
  parallel_chunks(a.rows, f.cols * (a.m + 1), [&](int64_t begin, int64_t end) {
    const char* start = (const char*)a.packed + begin * f.row_bytes;
    const int64_t bytes = min((end - begin) * f.row_bytes, bytes_ahead(f, kRows));
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(start + i, _MM_HINT_T1);
    int64_t first = times_rows<Bits, P, 4, Symmetric>(a, begin, end, f, 0);
    first = times_rows<Bits, P, 2, Symmetric>(a, begin, end, f, first);
    times_rows<Bits, P, 1, Symmetric>(a, begin, end, f, first);
  });
  return true;
}

template <int P>
static bool by_integers_of(const QuantizedGemvArgs& a) {
  if (a.format.bits == 8) return a.format.symmetric ? by_integers<8, P, true>(a) : by_integers<8, P, false>(a);
  return a.format.symmetric ? by_integers<4, P, true>(a) : by_integers<4, P, false>(a);
}

// Rows that hold what no scale fits (infinities, NaN, only tiny numbers) go the way of floats.
static void quantized_gemv(const QuantizedGemvArgs& a) {
  if (!has_integers() || !(a.short_x ? by_integers_of<2>(a) : by_integers_of<3>(a))) by_floats(a);
}
#else
static void quantized_gemv(const QuantizedGemvArgs& a) { by_floats(a); }
#endif

static const Register r{quantized_gemv_kernel, Device::cpu, quantized_gemv};

}  // namespace deem::DEEM_ISA
