// A block of positions is a flat run of positions * channels numbers whose column i belongs to channel i % channels.
// Narrow maps are read as if several positions were one wide row, so that every loop runs over up to kTile columns.
#include "ops/group_norm.h"

#include "cpu/doubles.h"
#include "cpu/row.h"

namespace deem::DEEM_ISA {

constexpr int64_t kTile = 64;
// Columns of what is written: memory is read and written in long runs, and nothing is summed that would have to stay in registers.
constexpr int64_t kWideTile = 512;

struct Block {
  int64_t offset, size;  // elements, from the start of x
  int64_t width;         // columns of a row: a multiple of channels
  int64_t n, index;      // which feature map, which block of all
  int64_t positions;
};

template <class Args>
DEEM_INLINE Block block_at(const Args& a, int64_t index) {
  int64_t blocks = (a.positions + a.block - 1) / a.block, n = index / blocks, first = (index - n * blocks) * a.block;
  int64_t positions = min(a.block, a.positions - first);
  int64_t width = a.channels < kTile ? kTile / a.channels * a.channels : a.channels;
  return {(n * a.positions + first) * a.channels, positions * a.channels, width, n, index, positions};
}

template <class Args, class F>
DEEM_INLINE void for_blocks(const Args& a, int64_t cost, F&& f) {
  int64_t blocks = (a.positions + a.block - 1) / a.block;
  parallel_for(a.n * blocks, min(a.block, a.positions) * a.channels * cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) f(block_at(a, i));
  });
}

// Calls f(first element, columns) for the rows of columns [column, column + columns) of a block; the last row may be
// cut.
template <class F>
DEEM_INLINE void for_rows(const Block& k, int64_t column, int64_t columns, F&& f) {
  int64_t i = column;
  if (columns == kTile)  // a constant trip count
    for (; i + kTile <= k.size; i += k.width) f(k.offset + i, kTile);
  for (; i < k.size; i += k.width) f(k.offset + i, min(columns, k.size - i));
}

// out[c] = sum of values[i] over the columns i that belong to channel c.
DEEM_INLINE void fold(const float* values, int64_t columns, int64_t first, int64_t channels, float* out) {
  for (int64_t i = 0; i < min(columns, channels); i++) out[first + i] = values[i];
  for (int64_t i = channels; i < columns; i++) out[i % channels] += values[i];
}

// Parameters and statistics of the columns of one tile.
template <class P, int64_t N = kTile>
struct Columns {
  float mean[N], rstd[N], w[N], b[N];
  int32_t group[N];

  template <class Args>
  DEEM_INLINE Columns(const Args& a, int64_t n, int64_t column, int64_t columns) {
    const P *weight = (const P*)a.w, *bias = (const P*)a.b;
    const int64_t per_group = a.channels / a.groups;
    for (int64_t i = 0, run; i < columns; i += run) {
      const int64_t c = (column + i) % a.channels, g = c / per_group, of_all = n * a.groups + g;
      const float mean_g = a.mean[of_all], rstd_g = a.rstd[of_all];
      run = min(columns - i, (g + 1) * per_group - c);
#pragma omp simd
      for (int64_t k = 0; k < run; k++) {
        group[i + k] = int32_t(of_all);
        mean[i + k] = mean_g;
        rstd[i + k] = rstd_g;
        w[i + k] = load(weight + c + k);
        b[i + k] = load(bias + c + k);
      }
    }
  }
};

// Mean and sum of squared deviations of every channel in one block, in two passes; the second also corrects the mean.
template <class T>
static void block_moments(const GroupNormArgs& a, const Block& k) {
  const T* x = (const T*)a.x;
  float *mean = a.block_mean + k.index * a.channels, *m2 = a.block_m2 + k.index * a.channels;
  float inverse = 1.0f / float(k.positions);
  for (int64_t column = 0; column < k.width; column += kTile) {
    int64_t columns = min(kTile, k.width - column);
    float s[kTile] = {}, s2[kTile] = {}, centre[kTile];
    for_rows(k, column, columns, [&](int64_t at, int64_t n) DEEM_ALWAYS {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) s[i] += load(x + at + i);
    });
    fold(s, columns, column, a.channels, mean);
    for (int64_t i = 0, c = column; i < columns; i++, c++) {
      if (c == a.channels) c = 0;
      centre[i] = mean[c] * inverse;
      s[i] = 0;
    }
    for_rows(k, column, columns, [&](int64_t at, int64_t n) DEEM_ALWAYS {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) {
        float d = load(x + at + i) - centre[i];
        s[i] += d;
        s2[i] += d * d;
      }
    });
    fold(s2, columns, column, a.channels, m2);
    fold(s, columns, column, a.channels, mean);
    for (int64_t i = 0; i < min(columns, a.channels); i++) {
      float rest = mean[column + i] * inverse;  // mean of the deviations
      m2[column + i] -= rest * rest * float(k.positions);
      mean[column + i] = centre[i] + rest;
    }
  }
}

DEEM_INLINE DoubleVec both_halves(Vec v) { return low_half(v) + high_half(v); }

// Chan, Golub & LeVeque's formula: sum (x - m)^2 = sum over parts of their own sums + count * (their mean - m)^2.
static void combine_moments(const GroupNormArgs& a, int64_t index) {
  int64_t blocks = (a.positions + a.block - 1) / a.block, per_group = a.channels / a.groups;
  int64_t n = index / a.groups, first = n * blocks * a.channels + (index - n * a.groups) * per_group;
  double sum = 0, square = 0;
  for (int64_t k = 0; k < blocks; k++) {
    const float* mean = a.block_mean + first + k * a.channels;
    DoubleVec means = {};
    for_row(per_group, [&](int64_t i, int, auto part) DEEM_ALWAYS { means += both_halves(get(mean + i, part)); });
    sum += double(min(a.block, a.positions - k * a.block)) * total(means);
  }
  const double count = double(a.positions * per_group), mean = sum / count;
  for (int64_t k = 0; k < blocks; k++) {
    const float *means = a.block_mean + first + k * a.channels, *m2 = a.block_m2 + first + k * a.channels;
    DoubleVec own = {}, apart = {};
    for_row(per_group, [&](int64_t i, int, auto part) DEEM_ALWAYS {
      const Vec v = get(means + i, part), there = within(Vec{} + 1.0f, part);
      const DoubleVec l = (low_half(v) - mean) * low_half(there), h = (high_half(v) - mean) * high_half(there);
      apart += l * l + h * h;
      own += both_halves(get(m2 + i, part));
    });
    square += total(own) + double(min(a.block, a.positions - k * a.block)) * total(apart);
  }
  a.mean[index] = float(mean);
  a.rstd[index] = float(1.0 / std::sqrt(max(square, 0.0) / count + double(a.eps)));
}

template <bool silu, class T, class P>
static void normalize_block(const GroupNormArgs& a, const Block& k) {
  const T* x = (const T*)a.x;
  T* y = (T*)a.y;
  for (int64_t column = 0; column < k.width; column += kWideTile) {
    int64_t columns = min(kWideTile, k.width - column);
    Columns<P, kWideTile> p(a, k.n, column, columns);
    for (int64_t i = 0; i < columns; i++) p.w[i] *= p.rstd[i];
    for_rows(k, column, columns, [&](int64_t at, int64_t n) DEEM_ALWAYS {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) {
        float z = (load(x + at + i) - p.mean[i]) * p.w[i] + p.b[i];
        store(y + at + i, silu ? z * sigmoid(z) : z);
      }
    });
  }
}

// dy, times the derivative of silu at z: s * (1 + z * (1 - s)) with s = sigmoid(z).
template <bool silu>
DEEM_INLINE float inner_gradient(float dy, float z) {
  if (!silu) return dy;
  float s = sigmoid(z);
  return dy * s * (1.0f + z * (1.0f - s));
}

// With `keeps`, what inner_gradient gives waits in dx for block_dx, which would work it out again.
template <bool silu, bool keeps, class T, class P>
static void block_gradients(const GroupNormBackwardArgs& a, const Block& k) {
  const T *x = (const T*)a.x, *dy = (const T*)a.dy;
  T* dx = (T*)a.dx;
  for (int64_t column = 0; column < k.width; column += kTile) {
    int64_t columns = min(kTile, k.width - column);
    Columns<P> p(a, k.n, column, columns);
    float dw[kTile] = {}, db[kTile] = {};
    for_rows(k, column, columns, [&](int64_t at, int64_t n) DEEM_ALWAYS {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) {
        float xhat = (load(x + at + i) - p.mean[i]) * p.rstd[i];
        float g = inner_gradient<silu>(load(dy + at + i), xhat * p.w[i] + p.b[i]);
        if constexpr (keeps) store(dx + at + i, g);
        db[i] += g;
        dw[i] += g * xhat;
      }
    });
    fold(dw, columns, column, a.channels, a.block_dw + k.index * a.channels);
    fold(db, columns, column, a.channels, a.block_db + k.index * a.channels);
  }
}

template <class P>
static void group_gradients(const GroupNormBackwardArgs& a, int64_t index) {
  int64_t blocks = (a.positions + a.block - 1) / a.block, per_group = a.channels / a.groups, n = index / a.groups;
  int64_t channel = (index - n * a.groups) * per_group, first = n * blocks * a.channels + channel;
  const P* w = (const P*)a.w + channel;
  DoubleVec sum_dw = {}, sum_db = {};
  for (int64_t k = 0; k < blocks; k++) {
    const float *block_dw = a.block_dw + first + k * a.channels, *block_db = a.block_db + first + k * a.channels;
    for_row(per_group, [&](int64_t i, int, auto part) DEEM_ALWAYS {
      const Vec v = get(w + i, part), dwi = get(block_dw + i, part), dbi = get(block_db + i, part);
      sum_dw += low_half(v) * low_half(dwi) + high_half(v) * high_half(dwi);
      sum_db += low_half(v) * low_half(dbi) + high_half(v) * high_half(dbi);
    });
  }
  const double dw = total(sum_dw), db = total(sum_db);
  a.group_dw[index] = float(dw / double(a.positions * per_group));
  a.group_db[index] = float(db / double(a.positions * per_group));
}

template <bool silu, bool keeps, class T, class P>
static void block_dx(const GroupNormBackwardArgs& a, const Block& k) {
  const T *x = (const T*)a.x, *dy = (const T*)a.dy;
  T* dx = (T*)a.dx;
  for (int64_t column = 0; column < k.width; column += kWideTile) {
    int64_t columns = min(kWideTile, k.width - column);
    Columns<P, kWideTile> p(a, k.n, column, columns);
    float mean_g[kWideTile], mean_gx[kWideTile];
    for (int64_t i = 0; i < columns; i++) {
      mean_g[i] = a.group_db[p.group[i]];
      mean_gx[i] = a.group_dw[p.group[i]];
    }
    for_rows(k, column, columns, [&](int64_t at, int64_t n) DEEM_ALWAYS {
#pragma omp simd
      for (int64_t i = 0; i < n; i++) {
        float xhat = (load(x + at + i) - p.mean[i]) * p.rstd[i];
        float g = keeps ? load(dx + at + i) : inner_gradient<silu>(load(dy + at + i), xhat * p.w[i] + p.b[i]);
        store(dx + at + i, p.rstd[i] * (g * p.w[i] - mean_g[i] - xhat * mean_gx[i]));
      }
    });
  }
}

template <class F>
DEEM_INLINE void dispatch_pair(DType dtype, DType param, const char* op, F&& f) {
  dispatch_float(dtype, op, [&]<class T>(T t) {
    if (param == DType::f32) f(t, float{});
    else f(t, t);
  });
}

static void forward(const GroupNormArgs& a) {
  dispatch_pair(a.dtype, a.param_dtype, "group_norm", [&]<class T, class P>(T, P) {
    for_blocks(a, 4, [&](const Block& k) { block_moments<T>(a, k); });
    parallel_for(a.n * a.groups, a.positions / a.block * a.channels / a.groups * 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) combine_moments(a, i);
    });
    if (a.silu) for_blocks(a, 20, [&](const Block& k) { normalize_block<true, T, P>(a, k); });
    else for_blocks(a, 2, [&](const Block& k) { normalize_block<false, T, P>(a, k); });
  });
}

static void sum_blocks(const GroupNormBackwardArgs& a) {
  int64_t rows = a.n * ((a.positions + a.block - 1) / a.block);
  parallel_for(a.channels, rows * 2, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) a.dw[c] = a.db[c] = 0;
    for (int64_t r = 0; r < rows; r++) {
      const float *dw = a.block_dw + r * a.channels, *db = a.block_db + r * a.channels;
#pragma omp simd
      for (int64_t c = begin; c < end; c++) {
        a.dw[c] += dw[c];
        a.db[c] += db[c];
      }
    }
  });
}

template <bool silu, bool keeps, class T, class P>
static void backward_as(const GroupNormBackwardArgs& a) {
  for_blocks(a, silu ? 24 : 6, [&](const Block& k) { block_gradients<silu, keeps, T, P>(a, k); });
  if (a.dw) sum_blocks(a);
  if (!a.dx) return;
  parallel_for(a.n * a.groups, a.positions / a.block * a.channels / a.groups * 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) group_gradients<P>(a, i);
  });
  for_blocks(a, silu && !keeps ? 24 : 8, [&](const Block& k) { block_dx<silu, keeps, T, P>(a, k); });
}

static void backward(const GroupNormBackwardArgs& a) {
  dispatch_pair(a.dtype, a.param_dtype, "group_norm_backward", [&]<class T, class P>(T, P) {
    constexpr bool exact = sizeof(T) == sizeof(float);  // dx keeps all digits
    if (!a.silu) backward_as<false, false, T, P>(a);
    else if (exact && a.dx) backward_as<true, exact, T, P>(a);
    else backward_as<true, false, T, P>(a);
  });
}

static const Register r1{group_norm_kernel, Device::cpu, forward};
static const Register r2{group_norm_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
