// A warp to one head of one query. Probabilities are worked out again wherever they are needed: the softmax keeps its maximum and
// sum only. The gradients of the tables, which all queries share, are sums in a fixed order over what each query adds.
#include "ops/mmfs_attention.h"

#include <algorithm>

#include "cuda/deform_scatter.cuh"
#include "cuda/partials.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace {

// One head of one query: its own part of offsets and logits, and its head's columns of the tables. Sample j of an image is point
// j % points of level j / points, and entry j + j / points of a row of logits, where each level ends with its ignore slot.
struct Query {
  int64_t item, b, q, h;
  const float *offsets, *logits, *offset_table, *logit_table;
  const int64_t* relative;                 // of image n: relative[n * queries]
  int64_t queries, offset_row, logit_row;  // strides of the tables
  float x, y;                              // reference point
  int samples, points;

  template <class Args>
  DEEM_DEVICE explicit Query(const Args& a) {
    const MmfsShape& s = a.shape;
    item = int64_t(blockIdx.x) * kQueryWarps + threadIdx.x / 32;
    const int64_t row = item / s.heads, width = s.n_levels * (s.points + 1);
    h = item - row * s.heads;
    b = row / s.q;
    q = row - b * s.q;
    if (b >= s.b) return;
    points = int(s.points);
    samples = int(s.n_levels * s.points);
    queries = s.q;
    offset_row = s.heads * s.points * 2;
    logit_row = s.heads * width;
    offsets = a.offsets + item * s.points * 2;
    logits = a.logits + item * width;
    offset_table = a.offset_table + h * s.points * 2;
    logit_table = a.logit_table + h * width;
    relative = a.relative + b * s.images * s.q + q;
    const float* reference = a.reference + (s.reference_rows == 1 ? 0 : q) * 2;
    x = reference[0];
    y = reference[1];
  }
  // r: the image's relative index.
  DEEM_DEVICE float logit(int64_t r, int sample) const {
    const int slot = sample + sample / points;
    return logits[slot] + logit_table[r * logit_row + slot];
  }
  DEEM_DEVICE Cell locate_sample(int64_t r, int sample, const DeformLevel& level) const {
    const int p = sample % points;
    const float* table = offset_table + r * offset_row + 2 * p;
    return locate(x * float(level.width) - 0.5f + (offsets[2 * p] + table[0]) * level.scale,
                  y * float(level.height) - 0.5f + (offsets[2 * p + 1] + table[1]) * level.scale, level.width,
                  level.height);
  }
};

// Of the samples of all images seen and the ignore slots of all images: probability = exp(logit - top) * inverse; `ignored` is
// that of all ignore slots. All lanes must call and all get the result.
struct Softmax {
  float top, inverse, ignored;

  DEEM_DEVICE Softmax(const Query& k, const MmfsShape& s) : top(0), inverse(0), ignored(1) {
    if (s.images == 0) return;
    float most = -3.402823466e38f, sum = 0;
    for (int64_t n = 0; n < s.images; n++) {
      const int64_t r = k.relative[n * k.queries];
      if (r == 0) continue;
      for (int j = int(threadIdx.x) % 32; j < k.samples; j += 32) {
        const float v = k.logit(r, j);
        if (v > most) {
          sum *= expf(most - v);
          most = v;
        }
        sum += expf(v - most);
      }
    }
    const float slots = float(s.images * s.n_levels), sink = -logf(slots);
    top = fmaxf(warp_max(most), sink);
    const float sinks = slots * expf(sink - top), total = warp_sum(sum * expf(most - top)) + sinks;
    inverse = 1.0f / total;
    ignored = sinks / total;
  }
  DEEM_DEVICE float probability(float logit) const { return expf(logit - top) * inverse; }
};

template <class T, int V>
__global__ void __launch_bounds__(kQueryThreads, 5) attend_kernel(MmfsArgs a) {
  DEEM_SHARED(Samples, shared, kQueryWarps);
  const MmfsShape& s = a.shape;
  const Query k(a);
  if (k.b >= s.b) return;
  Samples& samples = shared[threadIdx.x / 32];
  const int lane = int(threadIdx.x) % 32, packs = int(s.dim / V);
  const int64_t stride = s.heads * s.dim;
  const Lanes at(packs);
  const Softmax softmax(k, s);
  for (int first = 0; first < packs; first += at.lanes) {
    const int pack = first + at.lane;
    float sum[V] = {};
    for (int64_t n = 0; n < s.images; n++) {
      const int64_t r = k.relative[n * k.queries];
      if (r == 0) continue;
      const T* value = static_cast<const T*>(a.value) + ((k.b * s.images + n) * s.rows * s.heads + k.h) * s.dim;
      for (int base = 0; base < k.samples; base += 32) {
        const int sample = base + lane, left = k.samples - base;
        if (sample < k.samples) {
          const DeformLevel level = s.levels[sample / k.points];
          const Cell cell = k.locate_sample(r, sample, level);
          samples.rows[lane] = corner_rows(cell, level.width, level.height, level.start);
          samples.weights[lane] = corner_weights(cell, softmax.probability(k.logit(r, sample)));
        }
        __syncwarp();
        if (pack < packs) gather(samples, left < 32 ? left : 32, at, value + pack * V, stride, sum);
        __syncwarp();
      }
    }
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] = at.sum_groups(sum[i]);
    if (at.group != 0 || pack >= packs) continue;
    float ignore[V];
    load_float(a.ignore_token + k.h * s.dim + pack * V, ignore);
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] += softmax.ignored * ignore[i];
    store_float(static_cast<T*>(a.y) + k.item * s.dim + pack * V, sum);
  }
}

// What queries leave for the kernels that sum over them. Samples are ordered as SampleRecords say, whose weights are the
// probabilities.
struct MmfsScratch {
  SampleRecords samples;
  float* dlogits;      // one a sample
  float2* pixels;      // [b, q, heads, samples]: by a sample's offset, of the image at hand
  float2* offsets;     // [b, images, heads, q, points]
  float* ignored;      // [b, q, heads]
  float2* references;  // [b, q, heads]
};

// dprob = <dy, sample>; dlogit = prob * (dprob - sum of prob * dprob), the sum over the ignore slots too; doffset = prob * scale *
// (derivatives of the sample by pixels), dreference the same with the level's size. A lane finds in later loops what it wrote itself.
template <class T, int V>
__global__ void __launch_bounds__(kQueryThreads) query_gradients_kernel(MmfsBackwardArgs a, MmfsScratch to) {
  DEEM_SHARED(Samples, shared, kQueryWarps);
  const MmfsShape& s = a.shape;
  const Query k(a);
  if (k.b >= s.b) return;
  Samples& samples = shared[threadIdx.x / 32];
  const int lane = int(threadIdx.x) % 32, packs = int(s.dim / V), points = k.points;
  const Lanes at(packs);
  const T* dy = static_cast<const T*>(a.dy) + k.item * s.dim;
  const Softmax softmax(k, s);
  float2* pixels = to.pixels + k.item * k.samples;
  auto record = [&](int64_t n, int sample) {
    const int l = sample / points;
    return ((((k.b * s.images + n) * s.heads + k.h) * s.n_levels + l) * s.q + k.q) * points + sample - l * points;
  };
  auto offsets = [&](int64_t n) { return to.offsets + (((k.b * s.images + n) * s.heads + k.h) * s.q + k.q) * points; };

  float mean = 0, reference_x = 0, reference_y = 0;  // mean: of dprob
  for (int64_t c = lane; c < s.dim; c += 32) mean += a.ignore_token[k.h * s.dim + c] * to_float(dy[c]);
  mean *= softmax.ignored;
  for (int64_t n = 0; n < s.images; n++) {
    const int64_t r = k.relative[n * k.queries];
    if (r == 0) {
      for (int j = lane; j < k.samples; j += 32) to.samples.cell[record(n, j)] = kNoCell;
      continue;
    }
    const T* value = static_cast<const T*>(a.value) + ((k.b * s.images + n) * s.rows * s.heads + k.h) * s.dim;
    for (int base = 0; base < k.samples; base += 32) {
      const int sample = base + lane, left = k.samples - base;
      DeformLevel level{};
      Cell cell{};
      if (sample < k.samples) {
        level = s.levels[sample / points];
        cell = k.locate_sample(r, sample, level);
        samples.rows[lane] = corner_rows(cell, level.width, level.height, level.start);
      }
      __syncwarp();
      corner_dots<V>(samples, left < 32 ? left : 32, at, value, s.heads * s.dim, dy, packs);
      __syncwarp();
      if (sample < k.samples) {
        const float prob = softmax.probability(k.logit(r, sample));
        const SampleGradient d = sample_gradient(cell, samples.weights[lane]);
        const float x = prob * d.x, y = prob * d.y;
        mean += prob * d.weight;
        reference_x += x * float(level.width);
        reference_y += y * float(level.height);
        pixels[sample] = make_float2(x * level.scale, y * level.scale);
        const int64_t i = record(n, sample);
        to.samples.cell[i] = cell_index(cell, level.width);
        to.samples.x[i] = cell.x;
        to.samples.y[i] = cell.y;
        to.samples.weight[i] = prob;
        to.dlogits[i] = prob * d.weight;
      }
      __syncwarp();
    }
    for (int p = lane; p < points; p += 32) {
      float2 sum = make_float2(0, 0);
      for (int j = p; j < k.samples; j += points) sum = Sum{}(sum, pixels[j]);
      offsets(n)[p] = sum;
    }
    __syncwarp();  // before the next image's pixels
  }

  mean = warp_sum(mean);
  float* dlogits = a.dlogits + k.item * s.n_levels * (points + 1);
  for (int j = lane; j < k.samples; j += 32) {
    float sum = 0;
    for (int64_t n = 0; n < s.images; n++) {
      if (k.relative[n * k.queries] == 0) continue;
      const int64_t i = record(n, j);
      const float d = to.dlogits[i] - to.samples.weight[i] * mean;
      to.dlogits[i] = d;
      sum += d;
    }
    dlogits[j + j / points] = sum;
  }
  for (int l = lane; l < s.n_levels; l += 32) dlogits[l * (points + 1) + points] = 0;
  for (int p = lane; p < points; p += 32) {
    float2 sum = make_float2(0, 0);
    for (int64_t n = 0; n < s.images; n++)
      if (k.relative[n * k.queries] != 0) sum = Sum{}(sum, offsets(n)[p]);
    float* doffset = a.doffsets + (k.item * points + p) * 2;
    doffset[0] = sum.x;
    doffset[1] = sum.y;
  }
  reference_x = warp_sum(reference_x);
  reference_y = warp_sum(reference_y);
  if (lane != 0) return;
  to.ignored[k.item] = softmax.ignored;
  to.references[k.item] = make_float2(reference_x, reference_y);
}

// table[r, h, l, c] = sum of parts[image, h, l, q, c] over the images and queries with that relative index, c < columns. Rows of the
// table end with an ignore slot where `slot` is 1. Index 0 means hidden: its row is 0.
struct TableSum {
  const float* parts;
  const int64_t* relative;  // [images, q]
  float* table;
  int64_t images, q, heads, n_levels;
  int columns, slot;
};

// A block to a row's head and level; threads are dealt out to columns first, then to queries.
__global__ void __launch_bounds__(256) table_kernel(TableSum a) {
  DEEM_SHARED(float, sums, 256);
  const int64_t row = int64_t(blockIdx.x) / (a.heads * a.n_levels), group = blockIdx.x - row * a.heads * a.n_levels;
  float* table = a.table + int64_t(blockIdx.x) * (a.columns + a.slot);
  for (int first = 0; first < a.columns; first += 256) {
    const int width = a.columns - first < 256 ? a.columns - first : 256, lanes = 256 / width;
    const int lane = int(threadIdx.x) / width, c = first + int(threadIdx.x) - lane * width;
    float sum = 0;
    if (row != 0 && lane < lanes)
      for (int64_t image = 0; image < a.images; image++) {
        const float* parts = a.parts + (image * a.heads * a.n_levels + group) * a.q * a.columns + c;
#pragma unroll 4
        for (int64_t q = lane; q < a.q; q += lanes)
          if (a.relative[image * a.q + q] == row) sum += parts[q * a.columns];
      }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0) {
      for (int k = 1; k < lanes; k++) sum += sums[k * width + int(threadIdx.x)];
      table[c] = sum;
    }
    __syncthreads();
  }
  if (a.slot && threadIdx.x == 0) table[a.columns] = 0;
}

// partials[chunk, c] = sum over a run of rows (b, q) of ignored * dy.
template <class T>
__global__ void __launch_bounds__(128)
    ignore_kernel(const float* ignored, const T* dy, int64_t rows, int64_t heads, int64_t dim, float* partials) {
  const int64_t c = int64_t(blockIdx.x) * 128 + threadIdx.x, cols = heads * dim, chunk = blockIdx.y, chunks = gridDim.y;
  if (c >= cols) return;
  const int64_t h = c / dim;
  float sum = 0;
#pragma unroll 4
  for (int64_t r = rows * chunk / chunks; r < rows * (chunk + 1) / chunks; r++)
    sum += ignored[r * heads + h] * to_float(dy[r * cols + c]);
  partials[chunk * cols + c] = sum;
}

// to[q] = sum over b and h of parts[b, q, h].
__global__ void __launch_bounds__(128)
    references_kernel(const float2* parts, int64_t b, int64_t q, int64_t heads, float* to) {
  const int64_t i = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (i >= q) return;
  float2 sum = make_float2(0, 0);
  for (int64_t k = 0; k < b; k++)
    for (int64_t h = 0; h < heads; h++) sum = Sum{}(sum, parts[(k * q + i) * heads + h]);
  to[2 * i] = sum.x;
  to[2 * i + 1] = sum.y;
}

// to = sum of all n pairs.
__global__ void __launch_bounds__(256) shared_reference_kernel(const float* pairs, int64_t n, float* to) {
  float2 sum = make_float2(0, 0);
  for (int64_t i = threadIdx.x; i < n; i += 256) sum = Sum{}(sum, make_float2(pairs[2 * i], pairs[2 * i + 1]));
  sum = block_sum2<256>(sum);
  if (threadIdx.x != 0) return;
  to[0] = sum.x;
  to[1] = sum.y;
}

template <class Args, class F>
void dispatch_heads(const Args& a, const char* op, bool aligned, F&& f) {
  const MmfsShape& s = a.shape;
  const int64_t items = s.b * s.q * s.heads, blocks = (items + kQueryWarps - 1) / kQueryWarps;
  check<ValueError>(blocks <= kMaxGrid && s.n_levels * (s.points + 1) < int64_t(1) << 30 && s.dim < int64_t(1) << 30,
                    "[", op, "] cuda has no grid for ", s.b * s.q, " queries of ", s.heads, " heads");
  dispatch(a.dtype, op, [&]<class T>(T t) {
    constexpr int V = kVecWidth<T>;
    if (aligned && s.dim % V == 0 && aligned_to(V * sizeof(float), a.ignore_token))
      f(t, std::integral_constant<int, V>{}, dim3(unsigned(blocks)));
    else f(t, std::integral_constant<int, 1>{}, dim3(unsigned(blocks)));
  });
}

void forward(const MmfsArgs& a) {
  if (a.shape.b * a.shape.q * a.shape.heads == 0) return;
  dispatch_heads(a, "mmfs_attention", aligned_to(16, a.value, a.y),
                 [&]<class T, int V>(T, std::integral_constant<int, V>, dim3 grid) {
                   DEEM_LAUNCH((attend_kernel<T, V>), grid, dim3(kQueryThreads), 0, stream(), a);
                 });
}

void sum_table(const MmfsBackwardArgs& a, const float* parts, float* table, int64_t n_levels, int64_t columns,
               int slot) {
  const MmfsShape& s = a.shape;
  const int64_t blocks = s.relative_rows * s.heads * n_levels;
  if (blocks == 0) return;
  check<ValueError>(blocks <= kMaxGrid, "[mmfs_attention_backward] cuda has no grid for tables of ", s.relative_rows,
                    " rows");
  const TableSum k{parts, a.relative, table, s.b * s.images, s.q, s.heads, n_levels, int(columns), slot};
  DEEM_LAUNCH(table_kernel, dim3(unsigned(blocks)), dim3(256), 0, stream(), k);
}

template <class T>
void sum_ignored(const MmfsBackwardArgs& a, const float* ignored) {
  const MmfsShape& s = a.shape;
  const int64_t rows = s.b * s.q, cols = s.heads * s.dim;
  const int64_t chunks = std::min<int64_t>((rows + 15) / 16, 128);
  Scratch<float> partials(chunks * cols);
  if (chunks > 0)
    DEEM_LAUNCH((ignore_kernel<T>), dim3(unsigned((cols + 127) / 128), unsigned(chunks)), dim3(128), 0, stream(),
                ignored, static_cast<const T*>(a.dy), rows, s.heads, s.dim, partials.data());
  sum_partials(partials.data(), chunks, cols, a.dignore_token);
}

void sum_references(const MmfsBackwardArgs& a, const float2* parts) {
  const MmfsShape& s = a.shape;
  const bool shared = s.reference_rows == 1;
  Scratch<float> sums(shared ? 2 * s.q : 0);
  float* to = shared ? sums.data() : a.dreference;
  if (s.q > 0)
    DEEM_LAUNCH(references_kernel, dim3(unsigned((s.q + 127) / 128)), dim3(128), 0, stream(), parts, s.b, s.q, s.heads,
                to);
  if (shared)
    DEEM_LAUNCH(shared_reference_kernel, dim3(1), dim3(256), 0, stream(), static_cast<const float*>(to), s.q,
                a.dreference);
}

void backward(const MmfsBackwardArgs& a) {
  const MmfsShape& s = a.shape;
  const int64_t items = s.b * s.q * s.heads, count = items * s.images * s.n_levels * s.points;
  Scratch<uint32_t> cells(count);
  Scratch<float> numbers(4 * count), ignored(items);
  Scratch<float2> pixels(items * s.n_levels * s.points), offsets(items * s.images * s.points), references(items);
  float* x = numbers.data();
  const MmfsScratch k{{cells.data(), x, x + count, x + 2 * count},
                      x + 3 * count,
                      pixels.data(),
                      offsets.data(),
                      ignored.data(),
                      references.data()};
  dispatch_heads(a, "mmfs_attention_backward", aligned_to(16, a.value, a.dy),
                 [&]<class T, int V>(T, std::integral_constant<int, V>, dim3 grid) {
                   if (items > 0)
                     DEEM_LAUNCH((query_gradients_kernel<T, V>), grid, dim3(kQueryThreads), 0, stream(), a, k);
                   sum_ignored<T>(a, k.ignored);
                   if (!a.dvalue) return;
                   Scatter d{};
                   d.samples = k.samples;
                   d.dy = a.dy;
                   d.dvalue = a.dvalue;
                   d.levels = s.levels;
                   d.b = s.b;
                   d.images = s.images;
                   d.q = s.q;
                   d.heads = s.heads;
                   d.dim = s.dim;
                   d.rows = s.rows;
                   d.n_levels = s.n_levels;
                   d.points = s.points;
                   scatter<T>("mmfs_attention_backward", d);
                 });
  sum_table(a, k.dlogits, a.dlogit_table, s.n_levels, s.points, 1);
  sum_table(a, reinterpret_cast<const float*>(k.offsets), a.doffset_table, 1, 2 * s.points, 0);
  sum_references(a, k.references);
}

}  // namespace

DEEM_CUDA_KERNEL("mmfs_attention", forward);
DEEM_CUDA_KERNEL("mmfs_attention_backward", backward);

}  // namespace deem::cuda
