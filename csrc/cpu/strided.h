// Walks Strided operands run by run; for the kernels in csrc/cpu/kernels/.
#pragma once
#include "cpu/simd.h"
#include "ops/strided.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// Calls f(offsets, rows, steps, n) for stacks of `rows` runs of n numbers along the innermost axis, in parallel. offsets[k] is where the first
// run of operand k starts, steps[k] how far the next one is. Long axes are cut into pieces, so that a few rows still feed all threads.
template <int N, class F>
DEEM_INLINE void for_stacks(const Strided<N>& s, int64_t cost, F&& f) {
  constexpr int64_t kPiece = 8192;
  const int last = s.ndim - 1;
  const int64_t inner = s.shape[last], pieces = (inner + kPiece - 1) / kPiece;
  const int64_t height = last > 0 && pieces == 1 ? s.shape[last - 1] : 1;
  int64_t rows = 1, steps[N];
  for (int d = 0; d < last; d++) rows *= s.shape[d];
  for (int k = 0; k < N; k++) steps[k] = last > 0 ? s.strides[k][last - 1] : 0;
  parallel_for(rows * pieces, cost * min(inner, kPiece), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin, count; i < end; i += count) {
      int64_t row = i / pieces, from[N];
      const int64_t start = i % pieces * kPiece;
      count = min(end - i, height - row % height);
      for (int k = 0; k < N; k++) from[k] = start * s.strides[k][last];
      for (int d = last - 1; d >= 0; row /= s.shape[d--])
        for (int k = 0; k < N; k++) from[k] += row % s.shape[d] * s.strides[k][d];
      f(from, count, steps, min(kPiece, inner - start));
    }
  });
}

// Calls f(offsets, n) for each run.
template <int N, class F>
DEEM_INLINE void for_runs(const Strided<N>& s, int64_t cost, F&& f) {
  for_stacks(s, cost, [&](int64_t(&at)[N], int64_t rows, const int64_t(&steps)[N], int64_t n) DEEM_ALWAYS {
    for (int64_t r = 0; r < rows; r++) {
      f(at, n);
      for (int k = 0; k < N; k++) at[k] += steps[k];
    }
  });
}

}  // namespace deem::DEEM_ISA
#endif
