#include "ops/random.h"

#include <cstring>

#include "core/rng.h"
#include "cpu/simd.h"

namespace deem::DEEM_ISA {

constexpr int64_t kDraws = 64;  // made together

struct Words {
  alignas(64) uint32_t w[4][kDraws];
};

// Draws first..first + kDraws - 1 of a stream, four words each: philox() round by round over all of them, which vectorises.
static void make_draws(uint64_t seed, uint64_t stream, int64_t first, Words& out) {
  auto& w = out.w;
#pragma omp simd
  for (int64_t i = 0; i < kDraws; i++) {
    const uint64_t element = uint64_t(first + i);
    w[0][i] = uint32_t(element);
    w[1][i] = uint32_t(element >> 32);
    w[2][i] = uint32_t(stream);
    w[3][i] = uint32_t(stream >> 32);
  }
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; round++) {
#pragma omp simd
    for (int64_t i = 0; i < kDraws; i++) {
      const uint64_t p0 = uint64_t(0xD2511F53) * w[0][i], p1 = uint64_t(0xCD9E8D57) * w[2][i];
      w[0][i] = uint32_t(p1 >> 32) ^ w[1][i] ^ k0;
      w[1][i] = uint32_t(p1);
      w[2][i] = uint32_t(p0 >> 32) ^ w[3][i] ^ k1;
      w[3][i] = uint32_t(p0);
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}

// Calls f(words, first element, count) for blocks of draws that serve `per` elements each.
template <class F>
DEEM_INLINE void for_draws(uint64_t seed, uint64_t stream, int64_t n, int64_t per, F&& f) {
  const int64_t block = kDraws * per;
  parallel_for((n + block - 1) / block, block * 8, [&](int64_t begin, int64_t end) {
    Words words;
    for (int64_t b = begin; b < end; b++) {
      make_draws(seed, stream, b * kDraws, words);
      f(words, b * block, min(block, n - b * block));
    }
  });
}

static void normal(const RandomArgs& a) {
  for_draws(a.seed, a.stream, a.n, 2, [&](const Words& words, int64_t first, int64_t count) {
    float values[2 * kDraws], *y = (float*)a.y + first, *to = count == 2 * kDraws ? y : values;
#pragma omp simd
    for (int64_t i = 0; i < kDraws; i++) {
      // (0, 1] by 32 bits, so that the logarithm is finite and the tails reach 6.7.
      float radius = std::sqrt(-2.0f * log((float(words.w[0][i]) + 1.0f) * 0x1p-32f)), sine, cosine;
      sin_cos_turns(uniform01(words.w[1][i]), sine, cosine);
      to[2 * i] = radius * cosine;
      to[2 * i + 1] = radius * sine;
    }
    if (to == values) memcpy(y, values, size_t(count) * sizeof(float));
  });
}

static void uniform(const RandomArgs& a) {
  for_draws(a.seed, a.stream, a.n, 4, [&](const Words& words, int64_t first, int64_t count) {
    float values[4 * kDraws], *y = (float*)a.y + first, *to = count == 4 * kDraws ? y : values;
#pragma omp simd
    for (int64_t i = 0; i < kDraws; i++) {
      to[4 * i] = uniform01(words.w[0][i]);
      to[4 * i + 1] = uniform01(words.w[1][i]);
      to[4 * i + 2] = uniform01(words.w[2][i]);
      to[4 * i + 3] = uniform01(words.w[3][i]);
    }
    if (to == values) memcpy(y, values, size_t(count) * sizeof(float));
  });
}

static void integer(const RandomArgs& a) {
  for_draws(a.seed, a.stream, a.n, 1, [&](const Words& words, int64_t first, int64_t count) {
    int64_t* y = (int64_t*)a.y + first;
    for (int64_t i = 0; i < count; i++) {
      uint64_t bits = uint64_t(words.w[1][i]) << 32 | words.w[0][i];
      y[i] = int64_t(uint64_t(a.low) + uint64_t((unsigned __int128)bits * a.range >> 64));
    }
  });
}

static void random(const RandomArgs& a) {
  switch (a.draw) {
    case Draw::uniform: return uniform(a);
    case Draw::normal: return normal(a);
    case Draw::integer: return integer(a);
  }
}

template <class T>
static void drop_elements(const DropoutArgs& a) {
  for_draws(a.seed, a.stream, a.rows, 4, [&](const Words& words, int64_t first, int64_t count) {
    const T* x = (const T*)a.x + first;
    T* y = (T*)a.y + first;
    const uint32_t threshold = a.threshold;
    const float scale = a.scale;
    uint32_t word[4 * kDraws];
#pragma omp simd
    for (int64_t i = 0; i < kDraws; i++) {
      word[4 * i] = words.w[0][i];
      word[4 * i + 1] = words.w[1][i];
      word[4 * i + 2] = words.w[2][i];
      word[4 * i + 3] = words.w[3][i];
    }
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      float v = load(x + i) * scale;
      store(y + i, word[i] >= threshold ? v : 0.0f);
    }
  });
}

template <class T>
static void drop_rows(const DropoutArgs& a) {
  parallel_for(a.rows, a.cols + 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* x = (const T*)a.x + r * a.cols;
      T* y = (T*)a.y + r * a.cols;
      const bool keep = philox(a.seed, a.stream, uint64_t(r))[0] >= a.threshold;
      const float scale = a.scale;
#pragma omp simd
      for (int64_t i = 0; i < a.cols; i++) store(y + i, keep ? load(x + i) * scale : 0.0f);
    }
  });
}

static void dropout(const DropoutArgs& a) {
  dispatch_float(a.dtype, "dropout", [&]<class T>(T) { a.cols > 0 ? drop_rows<T>(a) : drop_elements<T>(a); });
}

static const Register r1{random_kernel, Device::cpu, random};
static const Register r2{dropout_kernel, Device::cpu, dropout};

}  // namespace deem::DEEM_ISA
