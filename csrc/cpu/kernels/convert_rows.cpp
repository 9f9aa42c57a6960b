#include "cpu/simd.h"
#include "cpu/wide.h"

namespace deem::DEEM_ISA {

template <class From, class To>
DEEM_INLINE void convert(const From* x, To* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) store(y + i, load(x + i));
}

template <class From, class To>
static void convert_all(const ConvertRowsArgs& a) {
  constexpr int64_t kBlock = 4096;
  const From* x = (const From*)a.x;
  To* y = (To*)a.y;
  if (a.rows == 1 || (a.x_stride == a.cols && a.y_stride == a.cols)) {
    const int64_t n = a.rows * a.cols;
    parallel_for((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
      convert(x + begin * kBlock, y + begin * kBlock, min(n, end * kBlock) - begin * kBlock);
    });
    return;
  }
  parallel_for(a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) convert(x + r * a.x_stride, y + r * a.y_stride, a.cols);
  });
}

static void convert_rows(const ConvertRowsArgs& a) {
  dispatch_float(a.from == DType::f32 ? a.to : a.from, "convert_rows", [&]<class T>(T) {
    if (a.from == DType::f32) convert_all<float, T>(a);
    else convert_all<T, float>(a);
  });
}

static const Register r{convert_rows_kernel, Device::cpu, convert_rows};

}  // namespace deem::DEEM_ISA
