#include "ops/reduce.h"

#include "cpu/doubles.h"

namespace deem::DEEM_ISA {

constexpr int64_t kTile = 512;

// Four numbers of 16 bits fit an f32, or nearly so; widening each to a double would be most of the work.
template <class T>
DEEM_INLINE double sum_of_four(float a, float b, float c, float d) {
  if constexpr (sizeof(T) == 2) return double((a + b) + (c + d));
  return (double(a) + double(b)) + (double(c) + double(d));
}

// Sums of R runs of n numbers.
template <class T, int R>
DEEM_INLINE void sum_runs(const T* const* x, int64_t n, double* sums) {
  constexpr int64_t kStep = 4 * kLanes;
  DoubleVec low[R] = {}, high[R] = {};
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep)
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      Vec v[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) v[j] = load_vec(x[r] + i + j * kLanes);
      if constexpr (sizeof(T) == 2) {
        const Vec four = (v[0] + v[1]) + (v[2] + v[3]);
        low[r] += low_half(four), high[r] += high_half(four);
      } else {
        low[r] += (low_half(v[0]) + low_half(v[1])) + (low_half(v[2]) + low_half(v[3]));
        high[r] += (high_half(v[0]) + high_half(v[1])) + (high_half(v[2]) + high_half(v[3]));
      }
    }
  for (int r = 0; r < R; r++) {
    sums[r] = total(low[r] + high[r]);
    for (int64_t j = i; j < n; j++) sums[r] += double(load(x[r] + j));
  }
}

template <class T>
struct Run {
  const T* x;
  int64_t n = 0;
  double sum = 0;
};
// Runs have the same length, or are shorter at the end of a row, or missing.
template <class T>
[[gnu::noinline]] static void sum_in_turn(Run<T> (&runs)[kPlaces]) {
  const T* x[kPlaces];
  double sums[kPlaces];
  int64_t shared = runs[0].n;
  for (int r = 0; r < kPlaces; r++) x[r] = runs[r].x, shared = min(shared, runs[r].n);
  sum_runs<T, kPlaces>(x, shared, sums);
  for (int r = 0; r < kPlaces; r++) {
    const T* rest = x[r] + shared;
    double more = 0;
    if (runs[r].n > shared) sum_runs<T, 1>(&rest, runs[r].n - shared, &more);
    runs[r].sum = sums[r] + more;
  }
}

// A number, or its product with the one in the same place of `times`.
template <bool Times, class T>
DEEM_INLINE float term(const T* x, const T* times, int64_t i) {
  if constexpr (Times) return load(x + i) * load(times + i);
  return load(x + i);
}

// sums[0..width) = sum over `rows` rows of x, or of products, `stride` apart.
template <bool Times, class T>
static void sum_columns(const T* x, const T* times, int64_t rows, int64_t stride, int64_t width, double* sums) {
  if constexpr (!Times) times = x;
  auto at = [&](int64_t i) DEEM_ALWAYS { return term<Times>(x, times, i); };
#pragma omp simd
  for (int64_t i = 0; i < width; i++) sums[i] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, x += 4 * stride, times += 4 * stride) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++)
      sums[i] += sum_of_four<T>(at(i), at(stride + i), at(2 * stride + i), at(3 * stride + i));
  }
  for (; r < rows; r++, x += stride, times += stride) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) sums[i] += double(at(i));
  }
}

// One block of rows in one tile of columns.
template <bool Times, class T>
static void sum_block(const T* x, const T* times, int64_t rows, int64_t inner, int64_t width, double* sums) {
  if (inner >= 32) {
    sum_columns<Times>(x, times, rows, inner, width, sums);
  } else {  // narrow rows, taken `fold` at a time
    const int64_t fold = 128 / inner, wide = fold * inner, full = rows / fold;
    double folded[128];
    sum_columns<Times>(x, times, full, wide, wide, folded);
    for (int64_t i = 0; i < inner; i++) {
      sums[i] = 0;
      for (int64_t k = 0; k < fold; k++) sums[i] += folded[k * inner + i];
      for (int64_t r = full * fold; r < rows; r++) sums[i] += double(term<Times>(x, times, r * inner + i));
    }
  }
}

// Where numbers that are summed lie side by side: sums of rows, or of blocks of them.
template <class T, class Y>
static void sum_lines(const SumArgs& a) {
  parallel_for(a.outer * a.blocks, a.block_rows, [&](int64_t begin, int64_t end) {
    const int64_t stretch = ceil_div(end - begin, kPlaces);
    for (int64_t i = 0; i < stretch; i++) {
      Run<T> runs[kPlaces] = {};
      auto item = [&](int64_t r) { return begin + r * stretch + i; };
      for (int64_t r = 0; r < kPlaces && item(r) < end; r++) {
        const int64_t row = item(r) % a.blocks * a.block_rows;
        runs[r] = {(const T*)a.x + item(r) / a.blocks * a.rows + row, min(a.block_rows, a.rows - row)};
      }
      sum_in_turn(runs);
      for (int64_t r = 0; r < kPlaces && item(r) < end; r++) {
        if (a.blocks > 1) a.partial[item(r)] = runs[r].sum;
        else store((Y*)a.y + item(r), float(runs[r].sum * a.scale));
      }
    }
  });
}

template <bool Times, class T, class Y>
static void sum_columns_as(const SumArgs& a) {
  const T *x = (const T*)a.x, *times = (const T*)a.times;
  Y* y = (Y*)a.y;
  const int64_t tiles = (a.inner + kTile - 1) / kTile, items = a.outer * a.blocks * tiles;
  parallel_for(items, a.block_rows * min(a.inner, kTile), [&](int64_t begin, int64_t end) {
    double sums[kTile];
    for (int64_t item = begin; item < end; item++) {
      const int64_t first = item % tiles * kTile, ob = item / tiles, o = ob / a.blocks, b = ob % a.blocks;
      const int64_t row = b * a.block_rows, rows = min(a.block_rows, a.rows - row), width = min(kTile, a.inner - first);
      const int64_t at = (o * a.rows + row) * a.inner + first;
      const T *from = x + at, *by = Times ? times + at : nullptr;
      if (a.blocks > 1) {
        sum_block<Times>(from, by, rows, a.inner, width, a.partial + ob * a.inner + first);
        continue;
      }
      sum_block<Times>(from, by, rows, a.inner, width, sums);
      Y* to = y + o * a.inner + first;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) store(to + i, float(sums[i] * a.scale));
    }
  });
}

template <class T, class Y>
static void sum_as(const SumArgs& a) {
  if (a.inner == 1) sum_lines<T, Y>(a);
  else if (a.times) sum_columns_as<true, T, Y>(a);
  else sum_columns_as<false, T, Y>(a);
  if (a.blocks == 1) return;
  parallel_for(a.outer * a.inner, a.blocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const double* from = a.partial + i / a.inner * a.blocks * a.inner + i % a.inner;
      double sum = 0;
      for (int64_t b = 0; b < a.blocks; b++) sum += from[b * a.inner];
      store((Y*)a.y + i, float(sum * a.scale));
    }
  });
}

static void sum(const SumArgs& a) {
  dispatch_float(a.x_dtype, "sum",
                 [&]<class T>(T) { dispatch_float(a.y_dtype, "sum", [&]<class Y>(Y) { sum_as<T, Y>(a); }); });
}

static void sum_squares(const SumSquaresArgs& s) {
  dispatch_float(s.dtype, "sum_squares", [&]<class T>(T) {
    parallel_for(s.blocks, s.block * 2, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; k++) {
        const int64_t begin = k * s.block, n = min(s.block, s.n - begin);
        s.partial[k] = sum_of_squares((const T*)s.a + begin, s.b ? (const T*)s.b + begin : nullptr, n);
      }
    });
    double total = 0;
    for (int64_t k = 0; k < s.blocks; k++) total += s.partial[k];
    if (s.sum) *s.sum = total;
    if (s.mean) *s.mean = float(total / double(s.n));
  });
}

static void mse_backward(const MseBackwardArgs& a) {
  dispatch_float(a.dtype, "mse_loss_backward", [&]<class T>(T) {
    const T *x = (const T*)a.x, *target = (const T*)a.target;
    T* dx = (T*)a.dx;
    parallel_for(a.n, 2, [=, g = a.scale * *a.dy](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; i++) store(dx + i, (load(x + i) - load(target + i)) * g);
    });
  });
}

// The largest value first, by blocks; then the first place in the first block that holds it.
template <class T>
static int64_t argmax_row(const T* x, int64_t n) {
  constexpr int64_t kBlock = 1024;
  float best = -__builtin_inff();
  int64_t best_block = 0;
  for (int64_t b = 0; b < n; b += kBlock) {
    const int64_t end = min(n, b + kBlock);
    float top = -__builtin_inff();
    int32_t nan = 0;
#pragma omp simd reduction(max : top) reduction(| : nan)
    for (int64_t i = b; i < end; i++) {
      float v = load(x + i);
      nan |= v != v;
      top = v > top ? v : top;
    }
    if (nan)
      for (int64_t i = b;; i++)
        if (load(x + i) != load(x + i)) return i;
    if (top > best) {
      best = top;
      best_block = b;
    }
  }
  for (int64_t i = best_block; i < n; i++)
    if (load(x + i) == best) return i;
  return 0;
}

static void argmax(const ArgmaxArgs& a) {
  dispatch_float(a.dtype, "argmax", [&]<class T>(T) {
    parallel_for(a.rows, a.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) a.y[r] = argmax_row((const T*)a.x + r * a.cols, a.cols);
    });
  });
}

static const Register r1{sum_kernel, Device::cpu, sum};
static const Register r2{sum_squares_kernel, Device::cpu, sum_squares};
static const Register r3{mse_backward_kernel, Device::cpu, mse_backward};
static const Register r4{argmax_kernel, Device::cpu, argmax};

}  // namespace deem::DEEM_ISA
