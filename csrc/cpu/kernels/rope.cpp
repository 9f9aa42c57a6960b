#include "ops/rope.h"

#include "cpu/simd.h"

namespace deem::DEEM_ISA {

// Cosine and sine of an angle below about 1e9 in size. Reduced to [-pi/4, pi/4] in double, where one constant is enough, and
// summed there as Taylor series to 1e-11.
DEEM_INLINE void cos_sin(float angle, float& cosine, float& sine) {
  double x = angle, n = std::floor(x * 0.63661977236758134308 + 0.5), r = x - n * 1.57079632679489661923, s = r * r;
  double sin_r =
      r * (1 + s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880 + s * (-1.0 / 39916800))))));
  double cos_r =
      1 +
      s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 + s * (-1.0 / 3628800 + s * (1.0 / 479001600))))));
  double quarter = n - 4 * std::floor(n * 0.25);  // 0..3
  bool odd = quarter == 1 || quarter == 3;
  double c = odd ? sin_r : cos_r, d = odd ? cos_r : sin_r;
  cosine = float(quarter == 1 || quarter == 2 ? -c : c);
  sine = float(quarter >= 2 ? -d : d);
}

static void make_table(const RopeTableArgs& a) {
  parallel_for(a.rows, a.half * 40, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      float position = float(a.positions[r]), *cosines = a.table + r * 2 * a.half, *sines = cosines + a.half;
#pragma omp simd
      for (int64_t i = 0; i < a.half; i++) cos_sin(position * a.frequencies[i], cosines[i], sines[i]);
    }
  });
}

template <class T>
static void rotate_head(const T* x, const float* cosines, const float* sines, float sign, int64_t half, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < half; i++) {
    float a = load(x + i), b = load(x + half + i), c = cosines[i], s = sines[i] * sign;
    store(y + i, a * c - b * s);
    store(y + half + i, b * c + a * s);
  }
}

static void rotate(const RopeArgs& a) {
  dispatch_float(a.dtype, "rope", [&]<class T>(T) {
    parallel_for(a.batches * a.tokens, a.heads * a.half * 6, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        int64_t b = r / a.tokens, t = r % a.tokens;
        const float* table = a.table + b * a.table_batch + t * 2 * a.half;
        const T* x = (const T*)a.x + b * a.batch + t * a.row;
        T* y = (T*)a.y + r * a.heads * 2 * a.half;
        for (int64_t h = 0; h < a.heads; h++)
          rotate_head(x + h * a.head, table, table + a.half, a.sign, a.half, y + h * 2 * a.half);
      }
    });
  });
}

static const Register r1{rope_table_kernel, Device::cpu, make_table};
static const Register r2{rope_kernel, Device::cpu, rotate};

}  // namespace deem::DEEM_ISA
