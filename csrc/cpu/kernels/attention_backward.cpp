#include "cpu/kernels/attention_tile.h"
#include "ops/attention.h"

namespace deem::DEEM_ISA {

// Part of the work: kept keys t0..t1 of one key head against queries q0..q1 of query heads h0..h1.
struct Part {
  int64_t batch, kv_head, t0, t1, h0, h1, q0, q1;
  bool keys, queries;  // which gradients to work out
};

// From the scores s = scale * k.q and ds = v.dy, both [keys, panel]: s becomes the probabilities, ds the gradient of k.q.
// WHOLE: these are all the keys a query sees, so delta is worked out here from the very numbers it is taken from, which
// keeps gradients that are zero in exact arithmetic (of key biases) at the level of rounding.
template <int64_t C, bool MASKED, bool WHOLE>
static void probabilities(float* s, float* ds, int64_t keys, const int32_t* limit, const float* top,
                          const float* inverse, const float* delta, float scale) {
  float sum[C];
#pragma omp simd
  for (int64_t c = 0; c < C; c++) sum[c] = WHOLE ? 0.0f : delta[c];
  for (int64_t j = 0; j < keys; j++) {
    float *sr = s + j * kPanel, *dr = ds + j * kPanel;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) {
      float e = exp(sr[c] - top[c]) * inverse[c];
      e = !MASKED || int32_t(j) < limit[c] ? e : 0.0f;
      sr[c] = e;
      if (WHOLE) sum[c] += e * dr[c];
    }
  }
  for (int64_t j = 0; j < keys; j++) {
    float *sr = s + j * kPanel, *dr = ds + j * kPanel;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) dr[c] = sr[c] * (dr[c] - sum[c]) * scale;
  }
}

template <bool MASKED, bool WHOLE>
static void probability_panel(float* s, float* ds, int64_t queries, int64_t keys, const int32_t* limit,
                              const float* top, const float* inverse, const float* delta, float scale) {
  if (whole_lanes(queries) == kPanel)
    return probabilities<kPanel, MASKED, WHOLE>(s, ds, keys, limit, top, inverse, delta, scale);
  for (int64_t c = 0; c < queries; c += kLanes)
    probabilities<kLanes, MASKED, WHOLE>(s + c, ds + c, keys, limit + c, top + c, inverse + c, delta + c, scale);
}

// rows[t] of the gradient of keys or values, at the keys' own positions; `all` is added to every row.
template <class T>
static void write_keys(const Part& w, const AttentionProblem& p, const int32_t* order, const float* rows,
                       const float* all, void* to) {
  for (int64_t t = w.t0; t < w.t1; t++) {
    T* y = (T*)to + ((w.batch * p.tk + order[t]) * p.kv_heads + w.kv_head) * p.dim;
    const float* x = rows + (t - w.t0) * padded(p.dim);
#pragma omp simd
    for (int64_t d = 0; d < p.dim; d++) store(y + d, x[d] + all[d]);
  }
}

// Rows of keys that are not kept: `all`.
template <class T>
static void write_dropped(const Part& w, const AttentionProblem& p, const int32_t* order, int64_t count,
                          const float* all, void* to) {
  for (int64_t t = 0, next = 0; t < p.tk; t++) {
    if (next < count && order[next] == t) {
      next++;
      continue;
    }
    T* y = (T*)to + ((w.batch * p.tk + t) * p.kv_heads + w.kv_head) * p.dim;
#pragma omp simd
    for (int64_t d = 0; d < p.dim; d++) store(y + d, all[d]);
  }
}

// Adds up in the order key block by key block and, for keys, head by head and panel by panel, however the work is cut.
template <class T>
static void backward_part(const AttentionBackwardArgs& a, const Part& w, float* scratch) {
  const AttentionProblem& p = a.p;
  const int32_t *plan = p.plan + w.batch * p.plan_stride, *order = plan + 1, *seen = order + p.tk;
  using E = Element<T>;
  int64_t dim = p.dim, ld = padded(dim), b = w.batch;
  int64_t lde = ld / kWide<E>, depth = (dim + kWide<E> - 1) / kWide<E>;  // in elements
  float *k = scratch, *v = k + p.chunk * ld, *dk = v + p.chunk * ld, *dv = dk + p.chunk * ld;
  float* k_paired = dv + p.chunk * ld;  // the rows of k that a product sums over, as dy and q below
  float *q = k_paired + p.chunk * ld, *dy = q + kPanel * ld, *dq = dy + kPanel * ld, *qt = dq + kPanel * ld,
        *dyt = qt + kPanel * ld, *q_paired = dyt + kPanel * ld, *dy_paired = q_paired + kPanel * ld;
  float *s = dy_paired + kPanel * ld, *ds = s + kKeys * kPanel, *weights = ds + kKeys * kPanel,
        *all = weights + 2 * kKeys * kPanel, *none = all + ld;
  float *top = none + ld, *inverse = top + kPanel, *delta = inverse + kPanel;
  int32_t* limit = (int32_t*)(delta + kPanel);
  bool want_q = w.queries, want_k = w.keys && a.dk, want_v = w.keys && a.dv;

  pack_keys<T>(p.k, b, w.kv_head, order, w.t0, w.t1, dim, (E*)k);
  pack_keys<T>(p.v, b, w.kv_head, order, w.t0, w.t1, dim, (E*)v);
  if constexpr (kPairs<T>)
    if (want_q) pair_rows((const bf16*)k, w.t1 - w.t0, ld, (E*)k_paired);
  for (int64_t d = 0; d < ld; d++) all[d] = none[d] = 0;
  for (int64_t i = 0; i < (w.t1 - w.t0) * ld; i++) dk[i] = dv[i] = 0;
  for (int64_t c = 0; c < kPanel; c++) top[c] = inverse[c] = delta[c] = 0;

  for (int64_t h = w.h0; h < w.h1; h++)
    for (int64_t i = w.q0; i < w.q1; i += kPanel) {
      int64_t n = min(kPanel, w.q1 - i), end = min<int64_t>(w.t1, seen[i + n - 1]);
      bool blind = want_v && seen[i] == 0;
      if (w.t0 > 0 && end <= w.t0 && !blind) continue;
      int64_t at = ((b * p.tq + i) * p.heads + h) * dim, step = p.heads * dim;
      for (int64_t r = 0; r < n; r++) {
        const T* from = (const T*)a.dy + at + r * step;
        pack_row(from, dim, (E*)dy + r * lde);
        if (blind && seen[i + r] == 0)
          for (int64_t d = 0; d < dim; d++) all[d] += load(from + d);
        if (want_q && w.t0 == 0)
          for (int64_t d = 0; d < ld; d++) dq[r * ld + d] = 0;
        else if (want_q) pack_row(a.dq_sum + at + r * step, dim, dq + r * ld);
      }
      bool whole = seen[i + n - 1] <= kKeys;
      if (end > w.t0) {
        for (int64_t r = 0; r < n; r++) {
          pack_row(row_of<T>(p.q, b, i + r, h), dim, (E*)q + r * lde);
          delta[r] = whole ? 0.0f : dot((const T*)a.dy + at + r * step, (const T*)a.y + at + r * step, dim);
          const float* norm = a.norms + 2 * ((b * p.heads + h) * p.tq + i + r);
          top[r] = norm[0], inverse[r] = norm[1];
        }
        transpose_panel((E*)q, n, dim, p.scale, (E*)qt);
        transpose_panel((E*)dy, n, dim, 1.0f, (E*)dyt);
        if constexpr (kPairs<T>) {
          pair_rows((const bf16*)q, n, ld, (E*)q_paired);
          pair_rows((const bf16*)dy, n, ld, (E*)dy_paired);
        }
      }
      for (int64_t t = w.t0; t < end; t += kKeys) {
        int64_t count = min(kKeys, end - t), from = (t - w.t0) * ld, lanes = whole_lanes(n);
        product<false>((E*)k + from / kWide<E>, lde, (E*)qt, kPanel, count, lanes, depth, s, kPanel,
                       kPairs<T> ? Start::times : Start::zero, &p.scale);
        product<false>((E*)v + from / kWide<E>, lde, (E*)dyt, kPanel, count, lanes, depth, ds, kPanel, Start::zero);
        bool masked = t + count > seen[i];
        if (masked)
          for (int64_t r = 0; r < kPanel; r++) limit[r] = r < n ? int32_t(seen[i + r] - t) : 0;
        auto panel = masked ? (whole ? probability_panel<true, true> : probability_panel<true, false>)
                            : (whole ? probability_panel<false, true> : probability_panel<false, false>);
        panel(s, ds, n, count, limit, top, inverse, delta, p.scale);
        int64_t width = whole_lanes(dim);
        if constexpr (kPairs<T>) {
          E* of_s = (E*)weights;
          int64_t half = (n + 1) / 2;
          if (want_v) {
            pair_columns(s, count, of_s);
            product<false>(of_s, kPanel / 2, (E*)dy_paired, ld, count, width, half, dv + from, ld, Start::add);
          }
          if (want_k) {
            pair_columns(ds, count, of_s);
            product<false>(of_s, kPanel / 2, (E*)q_paired, ld, count, width, half, dk + from, ld, Start::add);
          }
          if (want_q) {
            pair_rows(ds, count, of_s);
            product<true>(of_s, kPanel, (E*)k_paired + from / 2, ld, n, width, (count + 1) / 2, dq, ld, Start::add);
          }
        } else {
          if (want_v) product<false>(s, kPanel, dy, ld, count, width, n, dv + from, ld, Start::add);
          if (want_k) product<false>(ds, kPanel, q, ld, count, width, n, dk + from, ld, Start::add);
          if (want_q) product<true>(ds, kPanel, k + from, ld, n, width, count, dq, ld, Start::add);
        }
      }
      if (want_q)
        for (int64_t r = 0; r < n; r++) {
          float* to = a.dq_sum + at + r * step;
#pragma omp simd
          for (int64_t d = 0; d < dim; d++) to[d] = dq[r * ld + d];
        }
    }

  // A query that sees nothing took 1 / Tk of every value.
  for (int64_t d = 0; d < dim; d++) all[d] /= float(p.tk);
  if (want_k) write_keys<T>(w, p, order, dk, none, a.dk);
  if (want_v) write_keys<T>(w, p, order, dv, all, a.dv);
  if (w.t0 == 0 && want_k) write_dropped<T>(w, p, order, plan[0], none, a.dk);
  if (w.t0 == 0 && want_v) write_dropped<T>(w, p, order, plan[0], all, a.dv);
}

// All kept keys of w, a chunk at a time; once where there are none.
template <class T>
static void backward_keys(const AttentionBackwardArgs& a, Part w, float* scratch) {
  int64_t count = a.p.plan[w.batch * a.p.plan_stride];
  w.t0 = 0;
  do {
    w.t1 = min(count, w.t0 + a.p.chunk);
    backward_part<T>(a, w, scratch);
    w.t0 = w.t1;
  } while (w.t0 < count);
}

// Rounds dq, summing over the batch in order where q was broadcast.
template <class T>
static void finish_queries(const AttentionBackwardArgs& a) {
  const AttentionProblem& p = a.p;
  int64_t row = p.heads * p.dim, rows = a.q_batches * p.tq, terms = p.batches / a.q_batches;
  parallel_for(rows, row * terms, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * row; i < end * row; i += p.dim) {
      T* y = (T*)a.dq + i;
      const float* x = a.dq_sum + i;
#pragma omp simd
      for (int64_t d = 0; d < p.dim; d++) {
        float sum = x[d];
        for (int64_t b = 1; b < terms; b++) sum += x[b * p.tq * row + d];
        store(y + d, sum);
      }
    }
  });
}

template <class T>
static void backward_all(const AttentionBackwardArgs& a) {
  const AttentionProblem& p = a.p;
  const int64_t group = p.heads / p.kv_heads, pairs = p.batches * p.kv_heads, workers = p.workers;
  bool keys = a.dk || a.dv, queries = a.dq_sum;
  // One pass per key head needs five products, a pass for the keys and one for the queries four and three, but they can
  // be cut finer: for heads that would leave workers idle. Sums are the same.
  const int64_t rest = pairs % workers, once = !keys || !queries ? 0 : 7 * rest < 5 * workers ? pairs - rest : pairs;
  run_tasks(p, once, [&](int64_t task, float* scratch) {
    int64_t h = task % p.kv_heads;
    backward_keys<T>(a, {task / p.kv_heads, h, 0, 0, h * group, (h + 1) * group, 0, p.tq, true, true}, scratch);
  });
  int64_t chunks = (p.tk + p.chunk - 1) / p.chunk;
  if (keys)
    run_tasks(p, (pairs - once) * chunks, [&](int64_t task, float* scratch) {
      int64_t pair = once + task / chunks, b = pair / p.kv_heads, h = pair % p.kv_heads,
              begin = fold(task % chunks, chunks) * p.chunk;
      int64_t count = p.plan[b * p.plan_stride];
      if (begin == 0 || begin < count)
        backward_part<T>(
            a, {b, h, begin, min(count, begin + p.chunk), h * group, (h + 1) * group, 0, p.tq, true, false}, scratch);
    });
  chunks = (p.tq + p.chunk - 1) / p.chunk;
  if (queries)
    run_tasks(p, (pairs - once) * group * chunks, [&](int64_t task, float* scratch) {
      int64_t head = once * group + task / chunks, b = head / p.heads, h = head % p.heads,
              begin = fold(task % chunks, chunks) * p.chunk;
      backward_keys<T>(a, {b, h / group, 0, 0, h, h + 1, begin, min(p.tq, begin + p.chunk), false, true}, scratch);
    });
  if (queries && a.dq != a.dq_sum) finish_queries<T>(a);
}

static void backward(const AttentionBackwardArgs& a) {
  dispatch_float(a.p.dtype, "attention_backward", [&]<class T>(T) { backward_all<T>(a); });
}

static const Register r{attention_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
