#include "ops/deform_attn.h"

#include "cpu/kernels/bilinear.h"

namespace deem::DEEM_ISA {

template <class Args>
DEEM_INLINE void locate_samples(const Args& a, const Samples& s, const float* locations) {
  for (int64_t l = 0; l < a.n_levels; l++) {
    const DeformLevel& level = a.levels[l];
    int64_t begin = l * a.points, end = begin + a.points;
    for (int64_t i = begin; i < end; i++) {
      s.x[i] = locations[2 * i] * float(level.width) - 0.5f;
      s.y[i] = locations[2 * i + 1] * float(level.height) - 0.5f;
    }
    locate(s, begin, end, level);
  }
}

// Queries [begin, end) of one head; value points at the head's first row.
template <class T, class V>
static void attend(const DeformAttnArgs& a, const V* value, int64_t stride, const Samples& s, const Corners& c,
                   float* sum, int64_t b, int64_t h, int64_t begin, int64_t end) {
  for (int64_t q = begin; q < end; q++) {
    int64_t sample = (b * a.q + q) * a.heads + h, samples = a.n_levels * a.points, n = 0;
    locate_samples(a, s, a.locations + sample * samples * 2);
    for (int64_t l = 0; l < a.n_levels; l++)
      n = list_corners(c, n, s, l * a.points, (l + 1) * a.points, a.weights + sample * samples, a.levels[l].width);
    for (int64_t i = 0; i < a.dim; i++) sum[i] = 0;
    gather_rows(value, stride, c, n, sum, a.dim);
    T* y = (T*)a.y + sample * a.dim;
#pragma omp simd
    for (int64_t i = 0; i < a.dim; i++) store(y + i, sum[i]);
  }
}

template <class T>
static void forward_typed(const DeformAttnArgs& a) {
  int64_t slots = a.scratch.slots, stride = a.heads * a.dim, head_work = a.n_levels * a.points * (4 * a.dim + 32);
  // Heads of batch rows are the items; where they are fewer than threads, or values are not packed, queries are split
  // too.
  int64_t pairs = a.b * a.heads, parts = a.packed ? (slots + pairs - 1) / max(pairs, int64_t(1)) : a.q;
  parts = max(int64_t(1), min(parts, a.q));
  parallel_for(slots, pairs * a.q * head_work / slots + 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; slot++) {
      SlotMemory m{a.scratch.data + slot * a.scratch.slot_size};
      Samples s(m, a.n_levels * a.points);
      Corners c(m, a.n_levels * a.points);
      float *sum = m.take<float>(a.dim), *rows = m.take<float>(0);
      int64_t packed_pair = -1;
      for (int64_t i = pairs * parts * slot / slots; i < pairs * parts * (slot + 1) / slots; i++) {
        int64_t part = a.packed ? i % parts : i / a.heads % parts,
                pair = a.packed ? i / parts : i / (a.heads * parts) * a.heads + i % a.heads;
        int64_t b = pair / a.heads, h = pair % a.heads, begin = a.q * part / parts, end = a.q * (part + 1) / parts;
        const T* value = (const T*)a.value + (b * a.rows * a.heads + h) * a.dim;
        if (!a.packed) {
          attend<T>(a, value, stride, s, c, sum, b, h, begin, end);
          continue;
        }
        if (pair != packed_pair) pack_rows(value, stride, a.rows, a.dim, rows);
        packed_pair = pair;
        attend<T>(a, (const float*)rows, a.dim, s, c, sum, b, h, begin, end);
      }
    }
  });
}

// One head of one batch row: nobody else writes its rows of dvalue.
template <class T>
static void backward_head(const DeformAttnBackwardArgs& a, SlotMemory m, int64_t b, int64_t h) {
  int64_t samples = a.n_levels * a.points, stride = a.heads * a.dim, offset = (b * a.rows * a.heads + h) * a.dim;
  Samples s(m, samples);
  float *d_weight = m.take<float>(samples), *d_x = m.take<float>(samples), *d_y = m.take<float>(samples);
  float* dy = m.take<float>(a.dim);
  float *value = m.take<float>(a.rows * a.dim), *dvalue = a.dvalue ? m.take<float>(a.rows * a.dim) : nullptr;
  ScatterSamples scatter = scatter_for(a.dim);
  pack_rows((const T*)a.value + offset, stride, a.rows, a.dim, value);
  if (dvalue)
    for (int64_t i = 0; i < a.rows * a.dim; i++) dvalue[i] = 0;
  for (int64_t q = 0; q < a.q; q++) {
    int64_t sample = (b * a.q + q) * a.heads + h;
    const T* dy_in = (const T*)a.dy + sample * a.dim;
    for (int64_t i = 0; i < a.dim; i++) dy[i] = load(dy_in + i);
    const float* weight = a.weights + sample * samples;
    locate_samples(a, s, a.locations + sample * samples * 2);
    for (int64_t l = 0; l < a.n_levels; l++)
      scatter(s, l * a.points, (l + 1) * a.points, weight, a.levels[l].width, value, dvalue, dy, a.dim, d_weight, d_x,
              d_y);
    if (a.dweights)
      for (int64_t i = 0; i < samples; i++) a.dweights[sample * samples + i] = d_weight[i];
    if (a.dlocations)
      for (int64_t i = 0; i < samples; i++) {
        const DeformLevel& level = a.levels[i / a.points];
        float* d = a.dlocations + (sample * samples + i) * 2;
        d[0] = weight[i] * d_x[i] * float(level.width);
        d[1] = weight[i] * d_y[i] * float(level.height);
      }
  }
  if (dvalue) unpack_rows(dvalue, a.rows, a.dim, (T*)a.dvalue + offset, stride);
}

static void forward(const DeformAttnArgs& a) {
  dispatch_float(a.dtype, "ms_deform_attn", [&]<class T>(T) { forward_typed<T>(a); });
}

static void backward(const DeformAttnBackwardArgs& a) {
  int64_t slots = a.scratch.slots, pairs = a.b * a.heads;
  dispatch_float(a.dtype, "ms_deform_attn_backward", [&]<class T>(T) {
    parallel_for(slots, pairs * (a.rows + a.q * a.n_levels * a.points * 8) * a.dim / max(slots, int64_t(1)) + 1,
                 [&](int64_t first, int64_t last) {
                   for (int64_t slot = first; slot < last; slot++)
                     for (int64_t i = pairs * slot / slots; i < pairs * (slot + 1) / slots; i++)
                       backward_head<T>(a, {a.scratch.data + slot * a.scratch.slot_size}, i / a.heads, i % a.heads);
                 });
  });
}

static const Register r1{ms_deform_attn_kernel, Device::cpu, forward};
static const Register r2{ms_deform_attn_backward_kernel, Device::cpu, backward};

}  // namespace deem::DEEM_ISA
