#include "cpu/simd.h"
#include "ops/matmul.h"

namespace deem::DEEM_ISA {

// Columns are split between threads and rows run in order, so the sums do not depend on the thread count.
static void column_sum(const ColumnSumArgs& a) {
  dispatch_float(a.dtype, "column_sum", [&]<class T>(T) {
    const T* x = (const T*)a.x;
    T* y = (T*)a.y;
    parallel_for((a.cols + 63) / 64, a.rows * 64, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; block++) {
        float sum[64] = {};
        int64_t from = block * 64, n = min<int64_t>(64, a.cols - from);
        for (int64_t r = 0; r < a.rows; r++) {
          const T* row = x + r * a.cols + from;
#pragma omp simd
          for (int64_t i = 0; i < n; i++) sum[i] += load(row + i);
        }
        for (int64_t i = 0; i < n; i++) store(y + from + i, sum[i]);
      }
    });
  });
}

static const Register r{column_sum_kernel, Device::cpu, column_sum};

}  // namespace deem::DEEM_ISA
