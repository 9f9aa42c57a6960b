#include "ops/embedding.h"

#include <cstring>

#include "cpu/stream.h"

namespace deem::DEEM_ISA {

static void gather(const EmbeddingArgs& a) {
  dispatch_float(a.dtype, "embedding", [&]<class T>(T) {
    const bool streamed = is_streamed<T>(a.rows * a.cols);
    parallel_for(a.rows, a.cols, [&](int64_t begin, int64_t end) {
      copy_rows(streamed, [&](auto&& copy) DEEM_ALWAYS {
        for (int64_t r = begin; r < end; r++) {
          int64_t from = a.source[r];
          const T* x = from >= 0 ? (const T*)a.table + from * a.cols : (const T*)a.images + ~from * a.cols;
          T* y = (T*)a.y + r * a.cols;
          if (a.marked && a.marked[r]) {
            const T* more = (const T*)a.added;
#pragma omp simd
            for (int64_t i = 0; i < a.cols; i++) store(y + i, load(x + i) + load(more + i));
          } else {
            copy(y, x, a.cols * int64_t(sizeof(T)));
          }
        }
      });
    });
  });
}

static void sum_rows(const SumRowsArgs& a) {
  constexpr int64_t kStrip = 256;
  dispatch_float(a.dtype, "sum_rows", [&]<class T>(T) {
    int64_t rows = a.begin[a.segments] - a.begin[0];
    parallel_for(a.segments, a.segments ? rows * a.cols / a.segments : 0, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; s++)
        for (int64_t at = 0; at < a.cols; at += kStrip) {
          int64_t n = min(kStrip, a.cols - at);
          float sum[kStrip] = {};
          for (int64_t k = a.begin[s]; k < a.begin[s + 1]; k++) {
            const T* x = (const T*)a.x + a.order[k] * a.cols + at;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) sum[i] += load(x + i);
          }
          T* y = (T*)a.to + a.target[s] * a.cols + at;
#pragma omp simd
          for (int64_t i = 0; i < n; i++) store(y + i, sum[i]);
        }
    });
  });
}

static const Register r1{embedding_kernel, Device::cpu, gather};
static const Register r2{sum_rows_kernel, Device::cpu, sum_rows};

}  // namespace deem::DEEM_ISA
