#include "ops/greater.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

static void greater(const GreaterArgs& a) {
  dispatch_float(a.dtype, "greater", [&]<class T>(T) {
    parallel_for(a.n, 2, [x = (const T*)a.x, y = a.y, limit = a.limit](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; i++) y[i] = load(x + i) > limit;
    });
  });
}

static const Register r{greater_kernel, Device::cpu, greater};

}  // namespace deem::DEEM_ISA
