// Random numbers with the bits of core/rng.h: a draw is a function of (seed, stream, element). Normal numbers follow the CPU's
// polynomials in its order, with explicit fused multiply-adds, so that they differ by roundings only.
#include "ops/random.h"

#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

struct Words {
  uint32_t w[4];
};

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
__device__ inline Words philox(uint64_t seed, uint64_t stream, uint64_t element) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  uint32_t c0 = uint32_t(element), c1 = uint32_t(element >> 32), c2 = uint32_t(stream), c3 = uint32_t(stream >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t(0xD2511F53) * c0, p1 = uint64_t(0xCD9E8D57) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// [0, 1) with 24 bits.
__device__ inline float uniform01(uint32_t bits) { return float(bits >> 8) * 5.9604644775390625e-8f; }

// Natural logarithm of a normal number, relative error under 2e-7: mantissa in [1/sqrt 2, sqrt 2), minimax polynomial.
__device__ inline float log_of(float x) {
  const int32_t u = __float_as_int(x), e = (u - 0x3f3504f3) >> 23;
  const float f = __int_as_float(int32_t(uint32_t(u) - (uint32_t(e) << 23))) - 1.0f, n = float(e), s = f * f;
  float p = 6.746642095e-2f;
  p = fmaf(p, f, -1.167565245e-1f);
  p = fmaf(p, f, 1.188816188e-1f);
  p = fmaf(p, f, -1.240558879e-1f);
  p = fmaf(p, f, 1.421955240e-1f);
  p = fmaf(p, f, -1.666799586e-1f);
  p = fmaf(p, f, 2.000211866e-1f);
  p = fmaf(p, f, -2.500000960e-1f);
  p = fmaf(p, f, 3.333331260e-1f);
  return fmaf(n, 0.693359375f, fmaf(-0.5f, s, fmaf(p * f, s, n * -2.12194440e-4f)) + f);
}

// sin and cos of 2 pi u for 0 <= u <= 1, absolute error under 1e-7.
__device__ inline void sin_cos_turns(float u, float& sine, float& cosine) {
  const int32_t q = int32_t(fmaf(u, 4.0f, 0.5f));
  const float r = fmaf(u, 4.0f, -float(q)), s = r * r;
  const float sn =
      r * fmaf(s, fmaf(s, fmaf(s, fmaf(s, 1.582067422e-4f, -4.681266476e-3f), 7.969258276e-2f), -6.459640961e-1f),
               1.570796327f);
  const float cs =
      fmaf(s, fmaf(s, fmaf(s, fmaf(s, 9.040216707e-4f, -2.086028851e-2f), 2.536692440e-1f), -1.233700543f), 1.0f);
  const bool odd = q & 1;
  sine = odd ? cs : sn;
  cosine = odd ? sn : cs;
  sine = q & 2 ? -sine : sine;
  cosine = (q + 1) & 2 ? -cosine : cosine;
}

// The draws of a functor serve kEach elements each; at() makes the kEach elements that begin at i.
struct UniformWalk {
  float* y;
  uint64_t seed, stream;

  template <int N>
  __device__ void at(int64_t draw, int64_t count, bool vector) const {
    static_assert(N == 4);
    const Words bits = philox(seed, stream, uint64_t(draw));
    Vec<float, N> v;
#pragma unroll
    for (int k = 0; k < N; k++) v.v[k] = uniform01(bits.w[k]);
    write_pack<N>(y + draw * N, v, int(count), vector);
  }
};

// Box and Muller: a radius times the cosine and the sine of an angle.
struct NormalWalk {
  float* y;
  uint64_t seed, stream;

  template <int N>
  __device__ void at(int64_t draw, int64_t count, bool vector) const {
    static_assert(N == 2);
    const Words bits = philox(seed, stream, uint64_t(draw));
    // (0, 1] by 32 bits, so that the logarithm is finite and the tails reach 6.7.
    const float radius = sqrtf(-2.0f * log_of((float(bits.w[0]) + 1.0f) * 0x1p-32f));
    float sine, cosine;
    sin_cos_turns(uniform01(bits.w[1]), sine, cosine);
    Vec<float, N> v;
    v.v[0] = radius * cosine;
    v.v[1] = radius * sine;
    write_pack<N>(y + draw * N, v, int(count), vector);
  }
};

// low + floor(64 random bits * range / 2^64)
struct IntegerWalk {
  int64_t* y;
  uint64_t seed, stream;
  int64_t low;
  uint64_t range;

  template <int N>
  __device__ void at(int64_t draw, int64_t, bool) const {
    static_assert(N == 1);
    const Words words = philox(seed, stream, uint64_t(draw));
    const uint64_t bits = uint64_t(words.w[1]) << 32 | words.w[0];
    y[draw] = int64_t(uint64_t(low) + uint64_t((unsigned __int128)bits * range >> 64));
  }
};

template <class T>
struct DropoutWalk {
  const T* x;
  T* y;
  uint64_t seed, stream;
  uint32_t threshold;
  float scale;

  // The elements of one draw, or of two where a vector holds eight.
  template <int N>
  __device__ void at(int64_t pack, int64_t count, bool vector) const {
    float v[N];
    read_floats<N>(x + pack * N, int(count), v, vector);
#pragma unroll
    for (int d = 0; d < N / 4; d++) {
      const Words bits = philox(seed, stream, uint64_t(pack * (N / 4) + d));
#pragma unroll
      for (int k = 0; k < 4; k++) v[4 * d + k] = bits.w[k] >= threshold ? v[4 * d + k] * scale : 0.0f;
    }
    write_floats<N>(y + pack * N, v, int(count), vector);
  }
};

template <int N, class F>
__global__ void __launch_bounds__(kWalkThreads) walk_draws(F f, int64_t n, bool vector) {
  const int64_t packs = (n + N - 1) / N;
  for (int64_t p = walk_begin(); p < packs; p += walk_step())
    f.template at<N>(p, smaller<int64_t>(N, n - p * N), vector);
}

// N elements a thread, whether or not these can be stored as one vector.
template <int N, class F>
void for_draws(const F& f, int64_t n, bool vector) {
  if (n <= 0) return;
  DEEM_LAUNCH((walk_draws<N, F>), walk_grid((n + N - 1) / N), dim3(kWalkThreads), 0, stream(), f, n, vector);
}

void random(const RandomArgs& a) {
  float* y = static_cast<float*>(a.y);
  switch (a.draw) {
    case Draw::uniform: return for_draws<4>(UniformWalk{y, a.seed, a.stream}, a.n, is_aligned<4>(y));
    case Draw::normal: return for_draws<2>(NormalWalk{y, a.seed, a.stream}, a.n, is_aligned<2>(y));
    case Draw::integer:
      return for_draws<1>(IntegerWalk{static_cast<int64_t*>(a.y), a.seed, a.stream, a.low, a.range}, a.n, true);
  }
}

// ---- dropout of whole rows ----------------------------------------------------------------------------------------

template <class T>
struct DropRowsWalk {
  const T* x;
  T* y;
  int64_t cols;
  uint64_t seed, stream;
  uint32_t threshold;
  float scale;

  template <int N>
  __device__ void at(int64_t row, int64_t column, int count) const {
    const int64_t at = row * cols + column;
    float v[N] = {};
    if (philox(seed, stream, uint64_t(row)).w[0] >= threshold) {
      read_floats<N>(x + at, count, v);
#pragma unroll
      for (int k = 0; k < N; k++) v[k] *= scale;
    }
    write_floats<N>(y + at, v, count);
  }
};

void dropout(const DropoutArgs& a) {
  dispatch(a.dtype, "dropout", [&]<class T>(T) {
    constexpr int N = kVecWidth<T>;
    const T* x = static_cast<const T*>(a.x);
    T* y = static_cast<T*>(a.y);
    const bool vector = is_aligned<N>(x) && is_aligned<N>(y);
    if (a.cols > 0)
      for_rows<N>(DropRowsWalk<T>{x, y, a.cols, a.seed, a.stream, a.threshold, a.scale}, a.rows, a.cols,
                  vector && a.cols % N == 0);
    else for_draws<N>(DropoutWalk<T>{x, y, a.seed, a.stream, a.threshold, a.scale}, a.rows, vector);
  });
}

}  // namespace

DEEM_CUDA_KERNEL("random", random);
DEEM_CUDA_KERNEL("dropout", dropout);

}  // namespace deem::cuda
