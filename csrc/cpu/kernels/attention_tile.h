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
typedef int32_t IntVec [[gnu::vector_size(kLanes * 4), gnu::may_alias]];

constexpr int64_t kPanel = kAttentionPanel, kKeys = kAttentionKeys;

DEEM_INLINE int64_t padded(int64_t n) { return (n + 15) & ~int64_t(15); }
DEEM_INLINE int64_t whole_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

enum class Start { zero, add, scale };  // C = AB, C += AB, C = factor[row] * C + AB

// C [R, V vectors] from A [R, n] (or stored as [n, R]) and B [n, V vectors].
template <int R, int V, bool TA>
DEEM_INLINE void product_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c,
                              int64_t ldc, Start start, const float* factor) {
  Vec sum[R][V];
  for (int i = 0; i < R; i++)
    for (int j = 0; j < V; j++) {
      if (start == Start::zero) sum[i][j] = Vec{};
      else sum[i][j] = *(const Vec*)(c + i * ldc + j * kLanes);
      if (start == Start::scale) sum[i][j] *= factor[i];
    }
  for (int64_t p = 0; p < n; p++) {
    Vec row[V];
    for (int j = 0; j < V; j++) row[j] = *(const Vec*)(b + p * ldb + j * kLanes);
    for (int i = 0; i < R; i++) {
      float x = TA ? a[p * lda + i] : a[i * lda + p];
      for (int j = 0; j < V; j++) sum[i][j] += x * row[j];
    }
  }
  for (int i = 0; i < R; i++)
    for (int j = 0; j < V; j++) *(Vec*)(c + i * ldc + j * kLanes) = sum[i][j];
}

template <int R, bool TA>
static void product_rows(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t cols, int64_t n, float* c,
                         int64_t ldc, Start start, const float* factor) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= cols; j += 2 * kLanes)
    product_tile<R, 2, TA>(a, lda, b + j, ldb, n, c + j, ldc, start, factor);
  if (j < cols) product_tile<R, 1, TA>(a, lda, b + j, ldb, n, c + j, ldc, start, factor);
}

// C [rows, cols] from A [rows, n] (TA: stored as [n, rows]) and B [n, cols]; cols are whole vectors.
template <bool TA>
static void product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t rows, int64_t cols, int64_t n,
                    float* c, int64_t ldc, Start start, const float* factor = nullptr) {
  int64_t i = 0;
#define DEEM_ROWS(R)                                                                         \
  product_rows<R, TA>(a + (TA ? i : i * lda), lda, b, ldb, cols, n, c + i * ldc, ldc, start, \
                      factor ? factor + i : factor)
  for (; i + kRows <= rows; i += kRows) DEEM_ROWS(kRows);
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

// The kept keys begin..end of one head as f32 rows.
template <class T>
static void pack_keys(const HeadRows& x, int64_t b, int64_t h, const int32_t* order, int64_t begin, int64_t end,
                      int64_t dim, float* to) {
  for (int64_t t = begin; t < end; t++, to += padded(dim)) pack_row(row_of<T>(x, b, order[t], h), dim, to);
}

// rows [n, padded(dim)] -> [dim, panel] times scale, the lanes past n zero up to a whole vector.
static inline void transpose_panel(const float* rows, int64_t n, int64_t dim, float scale, float* to) {
  int64_t ld = padded(dim), lanes = whole_lanes(n);
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < dim; d++) to[d * kPanel + i] = rows[i * ld + d] * scale;
  if (n < lanes)
    for (int64_t d = 0; d < dim; d++)
      for (int64_t i = n; i < lanes; i++) to[d * kPanel + i] = 0;
}

template <class T>
DEEM_INLINE float dot(const float* a, const T* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * load(b + i);
  return sum;
}

// Runs task(i, scratch) for i in 0..n, `workers` ranges of them side by side.
template <class F>
DEEM_INLINE void run_tasks(const AttentionProblem& p, int64_t n, F&& task) {
  int64_t workers = p.workers < n ? p.workers : n;
  parallel_for(workers, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; w++)
      for (int64_t i = n * w / workers; i < n * (w + 1) / workers; i++) task(i, p.scratch + w * p.scratch_stride);
  });
}

// Alternates between both ends, 0, n - 1, 1, n - 2, ...: chunks of a causal triangle differ in work, and neighbours in this
// order, which go to one worker, make up for each other.
DEEM_INLINE int64_t fold(int64_t i, int64_t n) { return i % 2 ? n - 1 - i / 2 : i / 2; }

}  // namespace deem::DEEM_ISA
#endif
