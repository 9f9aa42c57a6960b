#include "ops/rope.h"

#include <algorithm>

#include "cuda/rows.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace {

// Cosine and sine of an angle below about 1e9 in size, as the CPU has them: reduced to [-pi/4, pi/4] in double, where one
// constant is enough, and summed there as Taylor series to 1e-11. sincosf would need local memory for such angles.
DEEM_DEVICE void cos_sin(float angle, float& cosine, float& sine) {
  const double x = angle, n = floor(x * 0.63661977236758134308 + 0.5), r = x - n * 1.57079632679489661923, s = r * r;
  const double sin_r =
      r * (1 + s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880 + s * (-1.0 / 39916800))))));
  const double cos_r =
      1 +
      s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 + s * (-1.0 / 3628800 + s * (1.0 / 479001600))))));
  const double quarter = n - 4 * floor(n * 0.25);  // 0..3
  const bool odd = quarter == 1 || quarter == 3;
  const double c = odd ? sin_r : cos_r, d = odd ? cos_r : sin_r;
  cosine = float(quarter == 1 || quarter == 2 ? -c : c);
  sine = float(quarter >= 2 ? -d : d);
}

__global__ void __launch_bounds__(256) make_table_kernel(RopeTableArgs a) {
  const int64_t count = a.rows * a.half, step = int64_t(gridDim.x) * 256;
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < count; i += step) {
    const int64_t row = i / a.half, k = i - row * a.half;
    float* to = a.table + row * 2 * a.half + k;
    cos_sin(float(a.positions[row]) * a.frequencies[k], to[0], to[a.half]);
  }
}

// A block takes the tokens' heads one token after the other, a thread V pairs of a head.
template <class T, int V>
__global__ void __launch_bounds__(256) rotate_kernel(RopeArgs a) {
  const int packs = int(a.half / V), items = int(a.heads) * packs;
  for (int64_t row = blockIdx.x; row < a.batches * a.tokens; row += gridDim.x) {
    const int64_t b = row / a.tokens, t = row - b * a.tokens;
    const float* table = a.table + b * a.table_batch + t * 2 * a.half;
    const T* from = static_cast<const T*>(a.x) + b * a.batch + t * a.row;
    T* to = static_cast<T*>(a.y) + row * a.heads * 2 * a.half;
    for (int i = int(threadIdx.x); i < items; i += int(blockDim.x)) {
      const int h = i / packs, c = (i - h * packs) * V;
      const T* x = from + h * a.head + c;
      T* y = to + h * 2 * a.half + c;
      float first[V], second[V], cosines[V], sines[V];
      load_float(x, first);
      load_float(x + a.half, second);
      load_float(table + c, cosines);
      load_float(table + a.half + c, sines);
#pragma unroll
      for (int k = 0; k < V; k++) {
        const float p = first[k], q = second[k], s = sines[k] * a.sign;
        first[k] = p * cosines[k] - q * s;
        second[k] = q * cosines[k] + p * s;
      }
      store_float(y, first);
      store_float(y + a.half, second);
    }
  }
}

void make_table(const RopeTableArgs& a) {
  const int64_t blocks = (a.rows * a.half + 255) / 256;
  if (blocks == 0) return;
  DEEM_LAUNCH(make_table_kernel, dim3(unsigned(std::min(blocks, kMaxGrid))), dim3(256), 0, stream(), a);
}

void rotate(const RopeArgs& a) {
  const int64_t rows = a.batches * a.tokens, pairs = a.heads * a.half;
  if (rows == 0 || pairs == 0) return;
  check<ValueError>(pairs < int64_t(1) << 31, "[rope] a token must have fewer than 2^32 elements on cuda but has ",
                    2 * pairs);
  dispatch(a.dtype, "rope", [&]<class T>(T) {
    constexpr int V = kVecWidth<T>;
    const dim3 grid(unsigned(std::min(rows, kMaxGrid)));
    const bool wide = aligned_to(16, a.x, a.y) && aligned_to(V * sizeof(float), a.table) && a.half % V == 0 &&
                      a.batch % V == 0 && a.row % V == 0 && a.head % V == 0 && a.table_batch % V == 0;
    const int64_t items = wide ? pairs / V : pairs;
    const dim3 block(unsigned(std::min<int64_t>(256, (items + 31) / 32 * 32)));
    if (wide) DEEM_LAUNCH((rotate_kernel<T, V>), grid, block, 0, stream(), a);
    else DEEM_LAUNCH((rotate_kernel<T, 1>), grid, block, 0, stream(), a);
  });
}

}  // namespace

DEEM_CUDA_KERNEL("rope_table", make_table);
DEEM_CUDA_KERNEL("rope", rotate);

}  // namespace deem::cuda
