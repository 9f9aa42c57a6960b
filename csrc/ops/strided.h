// Several operands walked over one shape, with the axes merged that lie one after the other in all of them.
#pragma once
#include "core/shape.h"

namespace deem {

template <int N>
struct Strided {
  int ndim;  // at least 1
  int64_t shape[kMaxDims];
  int64_t strides[N][kMaxDims];  // elements; 0 where an operand is broadcast
};

// Strides of `from` seen as `to`: right-aligned, 0 on broadcast axes. The shapes must fit.
inline Shape broadcast_strides(const Shape& from, const Shape& strides, const Shape& to) {
  Shape out = to;
  int lead = to.size() - from.size();
  for (int i = 0; i < to.size(); i++) out[i] = i < lead || (from[i - lead] == 1 && to[i] != 1) ? 0 : strides[i - lead];
  return out;
}

template <int N>
Strided<N> coalesce(const Shape& shape, const Shape (&strides)[N]) {
  Strided<N> s;
  int n = 0;  // built innermost first, turned round at the end
  for (int i = shape.size() - 1; i >= 0; i--) {
    if (shape[i] == 1) continue;
    bool merge = n > 0;
    for (int k = 0; k < N && merge; k++) merge = strides[k][i] == s.strides[k][n - 1] * s.shape[n - 1];
    if (merge) {
      s.shape[n - 1] *= shape[i];
      continue;
    }
    s.shape[n] = shape[i];
    for (int k = 0; k < N; k++) s.strides[k][n] = strides[k][i];
    n++;
  }
  if (n == 0) {
    s.shape[0] = 1;
    for (int k = 0; k < N; k++) s.strides[k][0] = 1;
    n = 1;
  }
  s.ndim = n;
  for (int i = 0, j = n - 1; i < j; i++, j--) {
    std::swap(s.shape[i], s.shape[j]);
    for (int k = 0; k < N; k++) std::swap(s.strides[k][i], s.strides[k][j]);
  }
  return s;
}

}  // namespace deem
