// What both attention kernels are made of: f32 tiles in scratch memory (64-byte aligned, rows padded with zeros to whole
// vectors) and a register-blocked product of them. Scores are held transposed, [key][query]: then keys, values, queries and
// cotangents all enter the products in their natural layout but for one transposed copy of each query panel, and the
// softmax runs along rows of whole vectors.
#pragma once
#include "cpu/simd.h"
#include "ops/attention.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// Rows of a register block: its sums, one row of B and one number of A fill the registers.
constexpr int64_t kRows = kLanes == 16 ? 8 : 6;
using IntVec = IntLanes;

constexpr int64_t kPanel = kAttentionPanel, kKeys = kAttentionKeys;

// What the products of a dtype are made of: floats, or, where the machine multiplies bf16, pairs of bf16 that lie next to each
// other along the axis that is summed over. `Wide` numbers fit one of them.
struct Pair {
  uint32_t bits;
};
template <bool pairs>
struct ElementOf {
  using type = float;
};
template <>
struct ElementOf<true> {
  using type = Pair;
};
template <class T>
using Element = typename ElementOf<kPairs<T>>::type;
template <class E>
constexpr int64_t kWide = 1;
template <>
constexpr int64_t kWide<Pair> = 2;

DEEM_INLINE void multiply_add(Vec& sum, const float& x, const float* row) { sum += x * *(const Vec*)row; }
DEEM_INLINE void multiply_add([[maybe_unused]] Vec& sum, [[maybe_unused]] const Pair& x,
                              [[maybe_unused]] const Pair* row) {
#if DEEM_ISA_INDEX >= 3
  sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(int(x.bits)), (__m512bh)_mm512_load_si512(row));
#endif
}

DEEM_INLINE int64_t padded(int64_t n) { return (n + 15) & ~int64_t(15); }

enum class Start { zero, times, add, scale };  // C = AB, C = *factor * AB, C += AB, C = factor[row] * C + AB

// C [R, V vectors] from A [R, n] (or stored as [n, R]) and B [n, V vectors].
template <int R, int V, bool TA, class E>
DEEM_INLINE void product_tile(const E* a, int64_t lda, const E* b, int64_t ldb, int64_t n, float* c, int64_t ldc,
                              Start start, const float* factor) {
  Vec sum[R][V];
  for (int i = 0; i < R; i++)
    for (int j = 0; j < V; j++) {
      if (start == Start::zero || start == Start::times) sum[i][j] = Vec{};
      else sum[i][j] = *(const Vec*)(c + i * ldc + j * kLanes);
      if (start == Start::scale) sum[i][j] *= factor[i];
    }
#pragma GCC unroll 2
  for (int64_t p = 0; p < n; p++)
    for (int i = 0; i < R; i++)
      for (int j = 0; j < V; j++)
        multiply_add(sum[i][j], TA ? a[p * lda + i] : a[i * lda + p], b + p * ldb + j * kLanes);
  const float times = start == Start::times ? *factor : 1.0f;
  for (int i = 0; i < R; i++)
    for (int j = 0; j < V; j++)
      *(Vec*)(c + i * ldc + j * kLanes) = start == Start::times ? sum[i][j] * times : sum[i][j];
}

template <int R, bool TA, class E>
static void product_rows(const E* a, int64_t lda, const E* b, int64_t ldb, int64_t cols, int64_t n, float* c,
                         int64_t ldc, Start start, const float* factor) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= cols; j += 2 * kLanes)
    product_tile<R, 2, TA>(a, lda, b + j, ldb, n, c + j, ldc, start, factor);
  if (j < cols) product_tile<R, 1, TA>(a, lda, b + j, ldb, n, c + j, ldc, start, factor);
}

// C [rows, cols] from A [rows, n] (TA: stored as [n, rows]) and B [n, cols]; cols are whole vectors. Strides of A and B and
// n count elements, which may be pairs.
template <bool TA, class E>
static void product(const E* a, int64_t lda, const E* b, int64_t ldb, int64_t rows, int64_t cols, int64_t n, float* c,
                    int64_t ldc, Start start, const float* factor = nullptr) {
  int64_t i = 0;
#define DEEM_ROWS(R)                                                                         \
  product_rows<R, TA>(a + (TA ? i : i * lda), lda, b, ldb, cols, n, c + i * ldc, ldc, start, \
                      factor && start == Start::scale ? factor + i : factor)
  // Eight rows in blocks of six and two would leave registers idle.
  for (; i + kRows <= rows && !(kRows == 6 && rows - i == 8); i += kRows) DEEM_ROWS(kRows);
  for (; i + 4 <= rows; i += 4) DEEM_ROWS(4);
  for (; i + 2 <= rows; i += 2) DEEM_ROWS(2);
  if (i < rows) DEEM_ROWS(1);
#undef DEEM_ROWS
}

template <class T>
DEEM_INLINE const T* row_of(const HeadRows& x, int64_t b, int64_t t, int64_t h) {
  return (const T*)x.data + b * x.batch + t * x.row + h * x.head;
}

// One row as f32, zeros up to the padded width.
template <class T>
DEEM_INLINE void pack_row(const T* x, int64_t dim, float* to) {
#pragma omp simd
  for (int64_t d = 0; d < dim; d++) to[d] = load(x + d);
  for (int64_t d = dim; d < padded(dim); d++) to[d] = 0;
}

DEEM_INLINE void pack_row([[maybe_unused]] const bf16* x, [[maybe_unused]] int64_t dim, [[maybe_unused]] Pair* to) {
#if DEEM_ISA_INDEX >= 3
  bf16* out = (bf16*)to;
  for (int64_t d = 0, end = padded(dim); d < end; d += 32) {
    const __mmask32 there = d + 32 <= dim ? ~0u : (1u << max<int64_t>(dim - d, 0)) - 1,
                    room = d + 32 <= end ? ~0u : 0xffff;
    _mm512_mask_storeu_epi16(out + d, room, _mm512_maskz_loadu_epi16(there, x + d));
  }
#endif
}

template <class T>
constexpr int64_t kAhead = 24 / sizeof(T);  // keys
// Rows of one head lie as far apart as all heads together, where the hardware does not look ahead.
template <class T>
DEEM_INLINE void ask_for(const T* row, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + i);
}

// The kept keys begin..end of one head as rows of elements.
template <class T, class E>
static void pack_keys(const HeadRows& x, int64_t b, int64_t h, const int32_t* order, int64_t begin, int64_t end,
                      int64_t dim, E* to) {
  for (int64_t t = begin; t < end; t++, to += padded(dim) / kWide<E>) {
    ask_for(row_of<T>(x, b, order[min(t + kAhead<T>, end - 1)], h), dim);
    pack_row(row_of<T>(x, b, order[t], h), dim, to);
  }
}

// rows [n, padded(dim)] -> elements [dim / width, panel] times scale, the lanes past n zero up to a whole vector. Pairs take no
// scale: they would have to be rounded again.
template <class E>
static inline void transpose_panel(const E* rows, int64_t n, int64_t dim, [[maybe_unused]] float scale, E* to) {
  int64_t ld = padded(dim) / kWide<E>, lanes = whole_lanes(n), height = (dim + kWide<E> - 1) / kWide<E>;
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < height; d++) {
      if constexpr (kWide<E> == 1) to[d * kPanel + i] = rows[i * ld + d] * scale;
      else to[d * kPanel + i] = rows[i * ld + d];
    }
  if (n < lanes)
    for (int64_t d = 0; d < height; d++)
      for (int64_t i = n; i < lanes; i++) to[d * kPanel + i] = E{};
}

// Rows of bf16 -> [n / 2, cols] pairs of neighbouring rows; a missing last row is zeros.
static inline void pair_rows(const bf16* rows, int64_t n, int64_t cols, Pair* to) {
  for (int64_t i = 0; i < n; i += 2, rows += 2 * cols, to += cols)
#pragma omp simd
    for (int64_t c = 0; c < cols; c++)
      to[c].bits = uint32_t(rows[c].bits) | (i + 1 < n ? uint32_t(rows[cols + c].bits) << 16 : 0u);
}

// The same of floats, rounded to the nearest; finite ones, as probabilities and their gradients are.
DEEM_INLINE uint32_t rounded_bits(float v) {
  uint32_t u = std::bit_cast<uint32_t>(v);
  return u + 0x7fff + (u >> 16 & 1);
}
static inline void pair_rows(const float* rows, int64_t n, Pair* to) {
  for (int64_t i = 0; i < n; i += 2, rows += 2 * kPanel, to += kPanel)
    if (i + 1 < n) {
#pragma omp simd
      for (int64_t c = 0; c < kPanel; c++)
        to[c].bits = rounded_bits(rows[c]) >> 16 | (rounded_bits(rows[kPanel + c]) & 0xffff0000u);
    } else {
#pragma omp simd
      for (int64_t c = 0; c < kPanel; c++) to[c].bits = rounded_bits(rows[c]) >> 16;
    }
}

// [n, panel] floats -> as many rows of panel / 2 pairs of neighbours.
static inline void pair_columns(const float* rows, int64_t n, Pair* to) {
  bf16* out = (bf16*)to;
#pragma omp simd
  for (int64_t i = 0; i < n * kPanel; i++) out[i].bits = uint16_t(rounded_bits(rows[i]) >> 16);
}

template <class A, class T>
DEEM_INLINE float dot(const A* a, const T* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += load(a + i) * load(b + i);
  return sum;
}

// Runs task(i, scratch) for i in 0..n, up to `workers` of them side by side.
template <class F>
DEEM_INLINE void run_tasks(const AttentionProblem& p, int64_t n, F&& task) {
  parallel_items(min(p.workers, max<int64_t>(n, 1)), n,
                 [&](int64_t i, int64_t worker) { task(i, p.scratch + worker * p.scratch_stride); });
}

// Alternates between both ends, 0, n - 1, 1, n - 2, ...: chunks of a causal triangle differ in work, and neighbours in this
// order make up for each other.
DEEM_INLINE int64_t fold(int64_t i, int64_t n) { return i % 2 ? n - 1 - i / 2 : i / 2; }

}  // namespace deem::DEEM_ISA
#endif
