#include "cpu/simd.h"
#include "ops/matmul.h"

namespace deem::DEEM_ISA {

// Columns that are read at once. Where they are pairs of bf16, a shift gives the even ones and a mask the odd ones.
constexpr int64_t kStep = 2 * kLanes;

template <class T>
DEEM_INLINE void load_step(const T* w, Vec& first, Vec& second) {
  first = load_vec(w);
  second = load_vec(w + kLanes);
}
DEEM_INLINE void load_step(const bf16* w, Vec& even, Vec& odd) {
  typedef uint32_t Words [[gnu::vector_size(kLanes * 4), gnu::may_alias, gnu::aligned(2)]];
  Words v = *(const Words*)w;
  even = (Vec)(v << 16);
  odd = (Vec)(v & 0xffff0000u);
}

// One row of x as f32, each step in the order in which load_step gives the weights.
template <class T>
static void arrange(const T* x, int64_t k, float* to) {
  constexpr bool pairs = dtype_of<T>::value == DType::bf16;
  int64_t c = 0;
  for (; c + kStep <= k; c += kStep)
    for (int64_t i = 0; i < kLanes; i++) {
      to[c + i] = load(x + c + (pairs ? 2 * i : i));
      to[c + kLanes + i] = load(x + c + (pairs ? 2 * i + 1 : i + kLanes));
    }
  for (; c < k; c++) to[c] = load(x + c);
}

// Bytes of weights that are asked for ahead, into the second cache: the hardware does not look as far. 3 to 5 % of decoding on Zen 5; with fewer
// lanes a loop would take an eighth more instructions for it.
constexpr int64_t kAhead = kLanes == 16 ? 8192 : 0;

// Sums of one row of weights with M rows of x. Rows are read one after the other, as they lie. Every result is summed in the same order whatever M is.
template <class T, int M>
static void row(const FewRowsArgs& a, int64_t n, int64_t first) {
  const float* x = a.scratch + first * a.k;
  const T* w = (const T*)a.weight + n * a.k;
  Vec sum[M][2] = {};
  int64_t c = 0;
  for (; c + kStep <= a.k; c += kStep) {
    Vec v0, v1;
    load_step(w + c, v0, v1);
    if constexpr (kAhead > 0)
      for (int64_t i = 0; i < kStep * int64_t(sizeof(T)); i += 64)
        __builtin_prefetch((const char*)(w + c) + kAhead + i, 0, 2);
    for (int m = 0; m < M; m++) {
      sum[m][0] += v0 * load_vec(x + m * a.k + c);
      sum[m][1] += v1 * load_vec(x + m * a.k + c + kLanes);
    }
  }
  float bias = a.bias ? load((const T*)a.bias + n) : 0.0f;
  for (int m = 0; m < M; m++) {
    float total = add_lanes(sum[m][0] + sum[m][1]);
    for (int64_t t = c; t < a.k; t++) total += x[m * a.k + t] * load(w + t);
    int64_t at = (first + m) * a.n + n;
    if (a.y_dtype == DType::f32) ((float*)a.y)[at] = total + bias;
    else store((T*)a.y + at, total + bias);
  }
}

static void few_rows(const FewRowsArgs& a) {
  dispatch_float(a.dtype, "linear", [&]<class T>(T) {
    for (int64_t m = 0; m < a.m; m++) arrange((const T*)a.x + m * a.k, a.k, a.scratch + m * a.k);
    parallel_chunks(a.n, a.k * a.m, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) {
        int64_t first = 0;
        for (; first + 4 <= a.m; first += 4) row<T, 4>(a, n, first);
        switch (a.m - first) {
          case 3: row<T, 3>(a, n, first); break;
          case 2: row<T, 2>(a, n, first); break;
          case 1: row<T, 1>(a, n, first); break;
          default: break;
        }
      }
    });
  });
}

static const Register r{few_rows_kernel, Device::cpu, few_rows};

}  // namespace deem::DEEM_ISA
