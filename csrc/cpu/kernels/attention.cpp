#include "ops/attention.h"

#include "cpu/kernels/attention_tile.h"

namespace deem::DEEM_ISA {

// Scores s [keys, panel] become exp(s - max) with the running maximum and sum of each query brought up to date; `factor`
// is what earlier sums have to be multiplied by. Query i sees the keys before seen[i].
template <int64_t C, bool MASKED>
static void softmax_block(float* s, int64_t keys, const int32_t* seen, float* top, float* total, float* factor) {
  for (int64_t c = 0; c < C; c += kLanes) {
    Vec before = *(const Vec*)(top + c), best = before;
    IntVec limit = MASKED ? *(const IntVec*)(seen + c) : IntVec{};
    for (int64_t j = 0; j < keys; j++) {
      Vec v = *(const Vec*)(s + j * kPanel + c);
      if (MASKED) v = IntVec{} + int32_t(j) < limit ? v : Vec{} - __builtin_inff();
      best = v > best ? v : best;
    }
    *(Vec*)(top + c) = best;
    *(Vec*)(factor + c) = before;
  }
  float sum[C], base[C];
#pragma omp simd
  for (int64_t c = 0; c < C; c++) {
    base[c] = top[c] == -__builtin_inff() ? 0.0f : top[c];
    factor[c] = exp(factor[c] - base[c]);
    sum[c] = 0;
  }
  for (int64_t j = 0; j < keys; j++) {
    float* row = s + j * kPanel;
#pragma omp simd
    for (int64_t c = 0; c < C; c++) {
      float e = exp(row[c] - base[c]);
      if (MASKED) e = int32_t(j) < seen[c] ? e : 0.0f;
      row[c] = e;
      sum[c] += e;
    }
  }
#pragma omp simd
  for (int64_t c = 0; c < C; c++) total[c] = total[c] * factor[c] + sum[c];
}

template <bool MASKED>
static void softmax_panel(float* s, int64_t queries, int64_t keys, const int32_t* seen, float* top, float* total,
                          float* factor) {
  if (whole_lanes(queries) == kPanel) return softmax_block<kPanel, MASKED>(s, keys, seen, top, total, factor);
  for (int64_t c = 0; c < queries; c += kLanes)
    softmax_block<kLanes, MASKED>(s + c, keys, seen + c, top + c, total + c, factor + c);
}

// Plain mean of all values of a head, for queries that see no key.
template <class T>
static void mean_of_values(const AttentionProblem& p, int64_t b, int64_t h, float* mean) {
  for (int64_t d = 0; d < p.dim; d++) mean[d] = 0;
  for (int64_t t = 0; t < p.tk; t++) {
    const T* v = row_of<T>(p.v, b, t, h);
#pragma omp simd
    for (int64_t d = 0; d < p.dim; d++) mean[d] += load(v + d);
  }
  for (int64_t d = 0; d < p.dim; d++) mean[d] /= float(p.tk);
}

// Queries first..last of one head: blocks of keys are packed once and met by all panels of the chunk.
template <class T>
static void forward_chunk(const AttentionArgs& a, int64_t b, int64_t h, int64_t first, int64_t last, float* scratch) {
  const AttentionProblem& p = a.p;
  const int32_t *plan = p.plan + b * p.plan_stride, *order = plan + 1, *seen = order + p.tk;
  using E = Element<T>;
  int64_t dim = p.dim, ld = padded(dim), kv = h / (p.heads / p.kv_heads);
  int64_t lde = ld / kWide<E>, depth = (dim + kWide<E> - 1) / kWide<E>;  // in elements
  float *queries = scratch, *out = queries + p.chunk * ld, *keys = out + p.chunk * ld, *values = keys + kKeys * ld;
  float *s = values + kKeys * ld, *weights = s + kKeys * kPanel, *rows = weights + kKeys * kPanel,
        *top = rows + kKeys * ld, *total = top + p.chunk, *factor = total + p.chunk;
  int32_t* limit = (int32_t*)(factor + kPanel);

  for (int64_t i = first; i < last; i += kPanel) {
    int64_t n = min(kPanel, last - i);
    float* panel = queries + (i - first) * ld;
    for (int64_t r = 0; r < n; r++) pack_row(row_of<T>(p.q, b, i + r, h), dim, (E*)keys + r * lde);
    transpose_panel((E*)keys, n, dim, p.scale, (E*)panel);
  }
  for (int64_t i = 0; i < p.chunk; i++) top[i] = -__builtin_inff(), total[i] = 0;

  for (int64_t t = 0; t < seen[last - 1]; t += kKeys) {
    int64_t block = min<int64_t>(kKeys, seen[last - 1] - t);
    pack_keys<T>(p.k, b, kv, order, t, t + block, dim, (E*)keys);
    if constexpr (kPairs<T>) {
      pack_keys<T>(p.v, b, kv, order, t, t + block, dim, (E*)rows);
      pair_rows((const bf16*)rows, block, ld, (E*)values);
    } else {
      pack_keys<T>(p.v, b, kv, order, t, t + block, dim, values);
    }
    for (int64_t i = first; i < last; i += kPanel) {
      int64_t n = min(kPanel, last - i), at = i - first, count = min(block, seen[i + n - 1] - t);
      if (count <= 0) continue;
      product<false>((E*)keys, lde, (E*)(queries + at * ld), kPanel, count, whole_lanes(n), depth, s, kPanel,
                     kPairs<T> ? Start::times : Start::zero, &p.scale);
      if (t + count > seen[i]) {
        for (int64_t r = 0; r < kPanel; r++) limit[r] = r < n ? int32_t(seen[i + r] - t) : 0;
        softmax_panel<true>(s, n, count, limit, top + at, total + at, factor);
      } else {
        softmax_panel<false>(s, n, count, limit, top + at, total + at, factor);
      }
      if constexpr (kPairs<T>) pair_rows(s, count, (E*)weights);
      product<true>(kPairs<T> ? (E*)weights : (E*)s, kPanel, (E*)values, ld, n, whole_lanes(dim),
                    (count + kWide<E> - 1) / kWide<E>, out + at * ld, ld, t ? Start::scale : Start::zero, factor);
    }
  }

  if (seen[first] == 0) mean_of_values<T>(p, b, kv, keys);
  for (int64_t i = first; i < last; i++) {
    T* y = (T*)a.y + ((b * p.tq + i) * p.heads + h) * dim;
    float sum = total[i - first];
    const float* o = seen[i] ? out + (i - first) * ld : keys;
    float inverse = seen[i] ? 1.0f / sum : 1.0f;
#pragma omp simd
    for (int64_t d = 0; d < dim; d++) store(y + d, o[d] * inverse);
    if (a.norms) {
      float* norm = a.norms + 2 * ((b * p.heads + h) * p.tq + i);
      norm[0] = seen[i] ? top[i - first] : 0.0f;
      norm[1] = seen[i] ? inverse : 0.0f;
    }
  }
}

// A single query, as a decoding step has it, of all the heads that share one head of keys: keys and values are read once, where
// they lie.
template <class T>
static void single_query(const AttentionArgs& a, int64_t b, int64_t kv, float* scratch) {
  const AttentionProblem& p = a.p;
  const int32_t *plan = p.plan + b * p.plan_stride, *order = plan + 1;
  const int64_t dim = p.dim, ld = padded(dim), group = p.heads / p.kv_heads, count = order[p.tk];
  float *queries = scratch, *out = queries + group * ld, *s = out + group * ld, *top = s + group * kKeys,
        *total = top + group;
  for (int64_t g = 0; g < group; g++) {
    pack_row(row_of<T>(p.q, b, 0, kv * group + g), dim, queries + g * ld);
    for (int64_t d = 0; d < dim; d++) queries[g * ld + d] *= p.scale, out[g * ld + d] = 0;
    top[g] = -__builtin_inff(), total[g] = 0;
  }
  for (int64_t t = 0; t < count; t += kKeys) {
    const int64_t block = min<int64_t>(kKeys, count - t);
    for (int64_t j = 0; j < block; j++) {
      ask_for(row_of<T>(p.k, b, order[min(t + j + kAhead<T>, count - 1)], kv), dim);
      for (int64_t g = 0; g < group; g++)
        s[g * kKeys + j] = dot(queries + g * ld, row_of<T>(p.k, b, order[t + j], kv), dim);
    }
    for (int64_t g = 0; g < group; g++) {
      float *row = s + g * kKeys, *o = out + g * ld, best = top[g], sum = 0;
#pragma omp simd reduction(max : best)
      for (int64_t j = 0; j < block; j++) best = max(best, row[j]);
      const float base = best == -__builtin_inff() ? 0.0f : best, factor = exp(top[g] - base);
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < block; j++) sum += row[j] = exp(row[j] - base);
      total[g] = total[g] * factor + sum;
      top[g] = best;
#pragma omp simd
      for (int64_t d = 0; d < dim; d++) o[d] *= factor;
    }
    for (int64_t j = 0; j < block; j++) {
      ask_for(row_of<T>(p.v, b, order[min(t + j + kAhead<T>, count - 1)], kv), dim);
      const T* v = row_of<T>(p.v, b, order[t + j], kv);
      for (int64_t g = 0; g < group; g++) {
        const float weight = s[g * kKeys + j];
        float* o = out + g * ld;
#pragma omp simd
        for (int64_t d = 0; d < dim; d++) o[d] += weight * load(v + d);
      }
    }
  }
  if (count == 0) mean_of_values<T>(p, b, kv, queries);
  for (int64_t g = 0; g < group; g++) {
    const int64_t h = kv * group + g;
    T* y = (T*)a.y + (b * p.heads + h) * dim;
    const float *o = count ? out + g * ld : queries, inverse = count ? 1.0f / total[g] : 1.0f;
#pragma omp simd
    for (int64_t d = 0; d < dim; d++) store(y + d, o[d] * inverse);
    if (a.norms) {
      a.norms[2 * (b * p.heads + h)] = count ? top[g] : 0.0f;
      a.norms[2 * (b * p.heads + h) + 1] = count ? inverse : 0.0f;
    }
  }
}

static void forward(const AttentionArgs& a) {
  const AttentionProblem& p = a.p;
  int64_t chunks = (p.tq + p.chunk - 1) / p.chunk;
  dispatch_float(p.dtype, "attention", [&]<class T>(T) {
    if (p.tq == 1)
      return run_tasks(p, p.batches * p.kv_heads, [&](int64_t task, float* scratch) {
        single_query<T>(a, task / p.kv_heads, task % p.kv_heads, scratch);
      });
    run_tasks(p, p.batches * p.heads * chunks, [&](int64_t task, float* scratch) {
      int64_t head = task / chunks, begin = fold(task % chunks, chunks) * p.chunk;
      forward_chunk<T>(a, head / p.heads, head % p.heads, begin, min(p.tq, begin + p.chunk), scratch);
    });
  });
}

static const Register r{attention_kernel, Device::cpu, forward};

}  // namespace deem::DEEM_ISA
