#include "ops/mmfs_attention.h"

#include "cpu/kernels/bilinear.h"

namespace deem::DEEM_ISA {

// The images a query sees, and the softmax over their samples. Sample j of an image is slot l * (points + 1) + p of its
// row of logits; ignore slots get probability 0 here and share `ignored`.
struct Query {
  const float *offsets, *logits;            // this query's and head's own
  const float *offset_table, *logit_table;  // this head's columns of the tables
  float x, y;                               // reference point
  int64_t seen;
  int32_t *image, *relative;  // [seen]
  float* prob;                // [seen, width]
  float ignored;
};

template <class Args>
DEEM_INLINE void open_query(const Args& a, Query& k, int64_t b, int64_t q, int64_t h) {
  const MmfsShape& s = a.shape;
  int64_t width = s.n_levels * (s.points + 1), row = (b * s.q + q) * s.heads + h;
  k.offsets = a.offsets + row * s.points * 2;
  k.logits = a.logits + row * width;
  k.offset_table = a.offset_table + h * s.points * 2;
  k.logit_table = a.logit_table + h * width;
  const float* reference = a.reference + (s.reference_rows == 1 ? 0 : q) * 2;
  k.x = reference[0];
  k.y = reference[1];
  k.seen = 0;
  for (int64_t n = 0; n < s.images; n++) {
    auto r = int32_t(a.relative[(b * s.images + n) * s.q + q]);
    k.image[k.seen] = int32_t(n);
    k.relative[k.seen] = r;
    k.seen += r != 0;
  }
}

static void softmax(const MmfsShape& s, Query& k) {
  int64_t width = s.n_levels * (s.points + 1), total = k.seen * width;
  if (s.images == 0) {
    k.ignored = 1;
    return;
  }
  for (int64_t i = 0; i < k.seen; i++) {
    const float* table = k.logit_table + k.relative[i] * s.heads * width;
    float* e = k.prob + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) e[j] = k.logits[j] + table[j];
    for (int64_t j = s.points; j < width; j += s.points + 1) e[j] = -__builtin_inff();
  }
  float slots = float(s.images * s.n_levels), sink = -__builtin_logf(slots), top = sink;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < total; j++) top = k.prob[j] > top ? k.prob[j] : top;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < total; j++) {
    float e = exp(k.prob[j] - top);
    k.prob[j] = e;
    sum += e;
  }
  float sinks = slots * exp(sink - top);
  sum += sinks;
  k.ignored = sinks / sum;
  float scale = 1.0f / sum;
#pragma omp simd
  for (int64_t j = 0; j < total; j++) k.prob[j] *= scale;
}

// The samples of the i-th image seen; ignore slots are left alone.
DEEM_INLINE void locate_samples(const MmfsShape& s, const Query& k, int64_t i, const Samples& at) {
  const float* table = k.offset_table + k.relative[i] * s.heads * s.points * 2;
  for (int64_t l = 0; l < s.n_levels; l++) {
    const DeformLevel& level = s.levels[l];
    float x = k.x * float(level.width) - 0.5f, y = k.y * float(level.height) - 0.5f, scale = level.scale;
    float *to_x = at.x + l * (s.points + 1), *to_y = at.y + l * (s.points + 1);
#pragma omp simd
    for (int64_t p = 0; p < s.points; p++) {
      to_x[p] = x + (k.offsets[2 * p] + table[2 * p]) * scale;
      to_y[p] = y + (k.offsets[2 * p + 1] + table[2 * p + 1]) * scale;
    }
    locate(at, l * (s.points + 1), l * (s.points + 1) + s.points, level);
  }
}

// Which images some query of batch row b sees: the others are neither read nor written.
template <class Args>
DEEM_INLINE bool is_seen(const Args& a, int64_t b, int64_t n) {
  const int64_t* relative = a.relative + (b * a.shape.images + n) * a.shape.q;
  for (int64_t q = 0; q < a.shape.q; q++)
    if (relative[q]) return true;
  return false;
}

// Queries [begin, end) of one head; value points at the first row of the head in image 0.
template <class T, class V>
static void attend(const MmfsArgs& a, const V* value, int64_t stride, Query& k, const Samples& at, const Corners& c,
                   float* sum, int64_t b, int64_t h, int64_t begin, int64_t end) {
  const MmfsShape& s = a.shape;
  const float* ignore = a.ignore_token + h * s.dim;
  for (int64_t q = begin; q < end; q++) {
    open_query(a, k, b, q, h);
    softmax(s, k);
#pragma omp simd
    for (int64_t i = 0; i < s.dim; i++) sum[i] = k.ignored * ignore[i];
    for (int64_t i = 0; i < k.seen; i++) {
      locate_samples(s, k, i, at);
      const float* prob = k.prob + i * s.n_levels * (s.points + 1);
      int64_t n = 0;
      for (int64_t l = 0, j = 0; l < s.n_levels; l++, j += s.points + 1)
        n = list_corners(c, n, at, j, j + s.points, prob, s.levels[l].width);
      gather_rows(value + k.image[i] * s.rows * stride, stride, c, n, sum, s.dim);
    }
    T* y = (T*)a.y + ((b * s.q + q) * s.heads + h) * s.dim;
#pragma omp simd
    for (int64_t i = 0; i < s.dim; i++) store(y + i, sum[i]);
  }
}

template <class T>
static void forward_typed(const MmfsArgs& a) {
  const MmfsShape& s = a.shape;
  int64_t slots = a.scratch.slots, stride = s.heads * s.dim, width = s.n_levels * (s.points + 1);
  int64_t pairs = s.b * s.heads, parts = a.packed ? (slots + pairs - 1) / max(pairs, int64_t(1)) : s.q;
  parts = max(int64_t(1), min(parts, s.q));
  parallel_for(slots, pairs * s.q * (s.images * width * (4 * s.dim + 40) + s.dim) / slots + 1,
               [&](int64_t first, int64_t last) {
                 for (int64_t slot = first; slot < last; slot++) {
                   SlotMemory m{a.scratch.data + slot * a.scratch.slot_size};
                   Samples at(m, width);
                   Corners c(m, width);
                   Query k{};
                   k.image = m.take<int32_t>(s.images);
                   k.relative = m.take<int32_t>(s.images);
                   k.prob = m.take<float>(s.images * width);
                   float *sum = m.take<float>(s.dim), *rows = m.take<float>(0);
                   int64_t packed_pair = -1;
                   for (int64_t i = pairs * parts * slot / slots; i < pairs * parts * (slot + 1) / slots; i++) {
                     // Packed: head by head, all batch rows of a head together, so that a batch row with many images is
                     // shared out.
                     int64_t pair = a.packed ? i / parts : i / (s.heads * parts) + i % s.heads * s.b,
                             part = a.packed ? i % parts : i / s.heads % parts;
                     int64_t h = pair / s.b, b = pair % s.b, begin = s.q * part / parts, end = s.q * (part + 1) / parts;
                     const T* value = (const T*)a.value + (b * s.images * s.rows * s.heads + h) * s.dim;
                     if (!a.packed) {
                       attend<T>(a, value, stride, k, at, c, sum, b, h, begin, end);
                       continue;
                     }
                     if (pair != packed_pair)
                       for (int64_t n = 0; n < s.images; n++)
                         if (is_seen(a, b, n))
                           pack_rows(value + n * s.rows * stride, stride, s.rows, s.dim, rows + n * s.rows * s.dim);
                     packed_pair = pair;
                     attend<T>(a, (const float*)rows, s.dim, k, at, c, sum, b, h, begin, end);
                   }
                 }
               });
}

// Buffers of one slot and pointers to what the head owns in the shared gradients.
struct HeadGradients {
  float* prob;                 // [images, width], gradient of the probabilities
  float *x, *y;                // [width], of the sampled values by the coordinates
  float *offset_x, *offset_y;  // [points]
  float *dy, *value, *dvalue;
  float *offset_table, *logit_table, *ignore;  // parts of this batch row, at this head's columns
};

// dprob = <dy, sample>; dlogit = prob * (dprob - sum of prob * dprob), the sum over the ignore slots too;
// doffset = prob * scale * (derivatives of the sample by pixels), dreference the same with the level's size.
static void query_gradients(const MmfsBackwardArgs& a, const Query& k, const Samples& at, const HeadGradients& g,
                            ScatterSamples scatter, int64_t b, int64_t q, int64_t h) {
  const MmfsShape& s = a.shape;
  int64_t width = s.n_levels * (s.points + 1), row = (b * s.q + q) * s.heads + h;
  float *doffsets = a.doffsets + row * s.points * 2, *dlogits = a.dlogits + row * width;
  for (int64_t p = 0; p < 2 * s.points; p++) doffsets[p] = 0;
  for (int64_t j = 0; j < width; j++) dlogits[j] = 0;
  float ignore_dot = 0, reference_x = 0, reference_y = 0;
  const float* ignore = a.ignore_token + h * s.dim;
#pragma omp simd reduction(+ : ignore_dot)
  for (int64_t i = 0; i < s.dim; i++) {
    g.ignore[i] += k.ignored * g.dy[i];
    ignore_dot += ignore[i] * g.dy[i];
  }
  float mean = k.ignored * ignore_dot;  // of dprob
  for (int64_t i = 0; i < k.seen; i++) {
    const float* prob = k.prob + i * width;
    float* dprob = g.prob + i * width;
    locate_samples(s, k, i, at);
    int64_t first = k.image[i] * s.rows * s.dim;
    for (int64_t p = 0; p < s.points; p++) g.offset_x[p] = g.offset_y[p] = 0;
    for (int64_t l = 0; l < s.n_levels; l++) {
      const DeformLevel& level = s.levels[l];
      int64_t begin = l * (s.points + 1), end = begin + s.points;
      scatter(at, begin, end, prob, level.width, g.value + first, g.dvalue ? g.dvalue + first : nullptr, g.dy, s.dim,
              dprob, g.x, g.y);
      dprob[end] = 0;
      float x_sum = 0, y_sum = 0;
#pragma omp simd reduction(+ : x_sum, y_sum, mean)
      for (int64_t p = 0; p < s.points; p++) {
        float x = prob[begin + p] * g.x[begin + p], y = prob[begin + p] * g.y[begin + p];
        mean += prob[begin + p] * dprob[begin + p];
        x_sum += x;
        y_sum += y;
        g.offset_x[p] += x * level.scale;
        g.offset_y[p] += y * level.scale;
      }
      reference_x += x_sum * float(level.width);
      reference_y += y_sum * float(level.height);
    }
    float* table = g.offset_table + k.relative[i] * s.heads * s.points * 2;
    for (int64_t p = 0; p < s.points; p++) {
      doffsets[2 * p] += g.offset_x[p];
      doffsets[2 * p + 1] += g.offset_y[p];
      table[2 * p] += g.offset_x[p];
      table[2 * p + 1] += g.offset_y[p];
    }
  }
  for (int64_t i = 0; i < k.seen; i++) {
    const float *prob = k.prob + i * width, *dprob = g.prob + i * width;
    float* table = g.logit_table + k.relative[i] * s.heads * width;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) {
      float d = prob[j] * (dprob[j] - mean);
      dlogits[j] += d;
      table[j] += d;
    }
  }
  float* reference = a.reference_parts + ((b * s.heads + h) * s.q + q) * 2;
  reference[0] = reference_x;
  reference[1] = reference_y;
}

// One head of one batch row: nobody else writes its rows of dvalue or its columns of the parts.
template <class T>
static void backward_head(const MmfsBackwardArgs& a, SlotMemory m, int64_t b, int64_t h) {
  const MmfsShape& s = a.shape;
  int64_t width = s.n_levels * (s.points + 1), stride = s.heads * s.dim, size = s.rows * s.dim;
  Samples at(m, width);
  Query k{};
  k.image = m.take<int32_t>(s.images);
  k.relative = m.take<int32_t>(s.images);
  k.prob = m.take<float>(s.images * width);
  HeadGradients g{};
  g.prob = m.take<float>(s.images * width);
  g.x = m.take<float>(width);
  g.y = m.take<float>(width);
  g.offset_x = m.take<float>(s.points);
  g.offset_y = m.take<float>(s.points);
  g.dy = m.take<float>(s.dim);
  g.value = m.take<float>(s.images * size);
  g.dvalue = a.dvalue ? m.take<float>(s.images * size) : nullptr;
  g.offset_table = a.offset_table_parts + (b * s.relative_rows * s.heads + h) * s.points * 2;
  g.logit_table = a.logit_table_parts + (b * s.relative_rows * s.heads + h) * width;
  g.ignore = a.ignore_parts + (b * s.heads + h) * s.dim;
  int64_t offset = (b * s.images * s.rows * s.heads + h) * s.dim;
  for (int64_t n = 0; n < s.images; n++)
    if (is_seen(a, b, n))
      pack_rows((const T*)a.value + offset + n * s.rows * stride, stride, s.rows, s.dim, g.value + n * size);
  if (g.dvalue)
    for (int64_t i = 0; i < s.images * size; i++) g.dvalue[i] = 0;
  ScatterSamples scatter = scatter_for(s.dim);
  for (int64_t q = 0; q < s.q; q++) {
    const T* dy = (const T*)a.dy + ((b * s.q + q) * s.heads + h) * s.dim;
    for (int64_t i = 0; i < s.dim; i++) g.dy[i] = load(dy + i);
    open_query(a, k, b, q, h);
    softmax(s, k);
    query_gradients(a, k, at, g, scatter, b, q, h);
  }
  if (g.dvalue) unpack_rows(g.dvalue, s.images * s.rows, s.dim, (T*)a.dvalue + offset, stride);
}

// to[i] = sum of the parts' element i, in order.
static void sum_parts(const float* parts, int64_t count, int64_t n, float* to) {
  parallel_for(n, count * 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) to[i] = 0;
    for (int64_t k = 0; k < count; k++)
#pragma omp simd
      for (int64_t i = begin; i < end; i++) to[i] += parts[k * n + i];
  });
}

static void forward(const MmfsArgs& a) {
  dispatch_float(a.dtype, "mmfs_attention", [&]<class T>(T) { forward_typed<T>(a); });
}

static void backward(const MmfsBackwardArgs& a) {
  const MmfsShape& s = a.shape;
  int64_t slots = a.scratch.slots, pairs = s.b * s.heads, width = s.n_levels * (s.points + 1);
  dispatch_float(a.dtype, "mmfs_attention_backward", [&]<class T>(T) {
    int64_t cost = pairs * s.images * (s.rows + s.q * width * 8) * s.dim / max(slots, int64_t(1)) + 1;
    parallel_for(slots, cost, [&](int64_t first, int64_t last) {
      for (int64_t slot = first; slot < last; slot++)
        for (int64_t i = pairs * slot / slots; i < pairs * (slot + 1) / slots; i++)
          backward_head<T>(a, {a.scratch.data + slot * a.scratch.slot_size}, i % s.b, i / s.b);
    });
  });
  sum_parts(a.offset_table_parts, s.b, s.relative_rows * s.heads * s.points * 2, a.doffset_table);
  sum_parts(a.logit_table_parts, s.b, s.relative_rows * s.heads * width, a.dlogit_table);
  sum_parts(a.ignore_parts, s.b, s.heads * s.dim, a.dignore_token);
  bool shared = s.reference_rows == 1;
  sum_parts(a.reference_parts, s.b * s.heads * (shared ? s.q : 1), shared ? 2 : s.q * 2, a.dreference);
}

static const Register r1{mmfs_attention_kernel, Device::cpu, forward};
static const Register r2{mmfs_attention_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
