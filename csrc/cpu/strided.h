// Walks Strided operands run by run; for the kernels in csrc/cpu/kernels/.
#pragma once
#include "cpu/simd.h"
#include "ops/strided.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// Calls f(offsets, n) for runs along the innermost axis, in parallel. offsets[k] is where operand k's run starts. Long
// axes are cut into pieces, so that a few rows still feed all threads.
template <int N, class F>
DEEM_INLINE void for_runs(const Strided<N>& s, int64_t cost, F&& f) {
  constexpr int64_t kPiece = 8192;
  const int last = s.ndim - 1;
  const int64_t inner = s.shape[last], pieces = (inner + kPiece - 1) / kPiece;
  int64_t rows = 1;
  for (int d = 0; d < last; d++) rows *= s.shape[d];
  parallel_for(rows * pieces, cost * min(inner, kPiece), [&](int64_t begin, int64_t end) {
    int64_t at[kMaxDims], offset[N] = {}, from[N], piece = begin % pieces, row = begin / pieces;
    for (int d = last - 1; d >= 0; d--) {
      at[d] = row % s.shape[d];
      row /= s.shape[d];
      for (int k = 0; k < N; k++) offset[k] += at[d] * s.strides[k][d];
    }
    for (int64_t i = begin; i < end; i++) {
      const int64_t start = piece * kPiece;
      for (int k = 0; k < N; k++) from[k] = offset[k] + start * s.strides[k][last];
      f(from, min(kPiece, inner - start));
      if (++piece < pieces) continue;
      piece = 0;
      for (int d = last - 1; d >= 0; d--) {
        for (int k = 0; k < N; k++) offset[k] += s.strides[k][d];
        if (++at[d] < s.shape[d]) break;
        for (int k = 0; k < N; k++) offset[k] -= s.shape[d] * s.strides[k][d];
        at[d] = 0;
      }
    }
  });
}

}  // namespace deem::DEEM_ISA
#endif
