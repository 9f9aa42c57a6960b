#include "ops/deform_attn.h"

#include "cuda/deform_scatter.cuh"
#include "cuda/slot.h"

namespace deem::cuda {
namespace {

// One head of one query, and its samples in the order of `locations`.
struct QueryHead {
  int64_t item, b, q, h;
  int samples;

  template <class Args>
  DEEM_DEVICE explicit QueryHead(const Args& a)
      : item(int64_t(blockIdx.x) * kQueryWarps + threadIdx.x / 32),
        b(item / (a.q * a.heads)),
        q(item / a.heads - b * a.q),
        h(item % a.heads),
        samples(int(a.n_levels * a.points)) {}
};

template <class Args>
DEEM_DEVICE Cell locate_sample(const Args& a, const QueryHead& k, int sample, const DeformLevel& level) {
  const float* at = a.locations + (k.item * k.samples + sample) * 2;
  return locate(at[0] * float(level.width) - 0.5f, at[1] * float(level.height) - 0.5f, level.width, level.height);
}

template <class T, int V>
__global__ void __launch_bounds__(kQueryThreads, 8) attend_kernel(DeformAttnArgs a) {
  DEEM_SHARED(Samples, shared, kQueryWarps);
  const QueryHead k(a);
  if (k.b >= a.b) return;
  Samples& samples = shared[threadIdx.x / 32];
  const int lane = int(threadIdx.x) % 32, packs = int(a.dim / V), points = int(a.points);
  const int64_t stride = a.heads * a.dim;
  const Lanes at(packs);
  const T* value = static_cast<const T*>(a.value) + (k.b * a.rows * a.heads + k.h) * a.dim;
  for (int first = 0; first < packs; first += at.lanes) {
    const int pack = first + at.lane;
    float sum[V] = {};
    for (int base = 0; base < k.samples; base += 32) {
      const int sample = base + lane, left = k.samples - base;
      if (sample < k.samples) {
        const DeformLevel level = a.levels[sample / points];
        const Cell cell = locate_sample(a, k, sample, level);
        samples.rows[lane] = corner_rows(cell, level.width, level.height, level.start);
        samples.weights[lane] = corner_weights(cell, a.weights[k.item * k.samples + sample]);
      }
      __syncwarp();
      if (pack < packs) gather(samples, left < 32 ? left : 32, at, value + pack * V, stride, sum);
      __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] = at.sum_groups(sum[i]);
    if (at.group == 0 && pack < packs) store_float(static_cast<T*>(a.y) + k.item * a.dim + pack * V, sum);
  }
}

// dweights and dlocations, and what the scatter of dvalue needs to know of the samples.
template <class T, int V>
__global__ void __launch_bounds__(kQueryThreads)
    query_gradients_kernel(DeformAttnBackwardArgs a, SampleRecords records) {
  DEEM_SHARED(Samples, shared, kQueryWarps);
  const QueryHead k(a);
  if (k.b >= a.b) return;
  Samples& samples = shared[threadIdx.x / 32];
  const int lane = int(threadIdx.x) % 32, packs = int(a.dim / V), points = int(a.points);
  const Lanes at(packs);
  const T* value = static_cast<const T*>(a.value) + (k.b * a.rows * a.heads + k.h) * a.dim;
  const T* dy = static_cast<const T*>(a.dy) + k.item * a.dim;
  for (int base = 0; base < k.samples; base += 32) {
    const int sample = base + lane, left = k.samples - base;
    DeformLevel level{};
    Cell cell{};
    if (sample < k.samples) {
      level = a.levels[sample / points];
      cell = locate_sample(a, k, sample, level);
      samples.rows[lane] = corner_rows(cell, level.width, level.height, level.start);
    }
    __syncwarp();
    if (a.dweights || a.dlocations)
      corner_dots<V>(samples, left < 32 ? left : 32, at, value, a.heads * a.dim, dy, packs);
    __syncwarp();
    if (sample < k.samples) {
      const int64_t i = k.item * k.samples + sample;
      const float weight = a.weights[i];
      const SampleGradient d = sample_gradient(cell, samples.weights[lane]);
      if (a.dweights) a.dweights[i] = d.weight;
      if (a.dlocations) {
        a.dlocations[2 * i] = weight * d.x * float(level.width);
        a.dlocations[2 * i + 1] = weight * d.y * float(level.height);
      }
      if (records.cell) {
        const int l = sample / points;
        const int64_t to = (((k.b * a.heads + k.h) * a.n_levels + l) * a.q + k.q) * points + sample - l * points;
        records.cell[to] = cell_index(cell, level.width);
        records.x[to] = cell.x;
        records.y[to] = cell.y;
        records.weight[to] = weight;
      }
    }
    __syncwarp();
  }
}

// Calls f<T, V>(blocks) for the queries there are.
template <class Args, class F>
void dispatch_heads(const Args& a, const char* op, bool aligned, F&& f) {
  const int64_t blocks = (a.b * a.q * a.heads + kQueryWarps - 1) / kQueryWarps;
  check<ValueError>(blocks <= kMaxGrid && a.n_levels * a.points < int64_t(1) << 30 && a.dim < int64_t(1) << 30, "[", op,
                    "] cuda has no grid for ", a.b * a.q, " queries of ", a.heads, " heads");
  dispatch(a.dtype, op, [&]<class T>(T t) {
    constexpr int V = kVecWidth<T>;
    if (aligned && a.dim % V == 0) f(t, std::integral_constant<int, V>{}, dim3(unsigned(blocks)));
    else f(t, std::integral_constant<int, 1>{}, dim3(unsigned(blocks)));
  });
}

void forward(const DeformAttnArgs& a) {
  if (a.b * a.q * a.heads * a.dim == 0) return;
  dispatch_heads(a, "ms_deform_attn", aligned_to(16, a.value, a.y),
                 [&]<class T, int V>(T, std::integral_constant<int, V>, dim3 grid) {
                   DEEM_LAUNCH((attend_kernel<T, V>), grid, dim3(kQueryThreads), 0, stream(), a);
                 });
}

void backward(const DeformAttnBackwardArgs& a) {
  const int64_t count = a.dvalue ? a.b * a.q * a.heads * a.n_levels * a.points : 0;
  Scratch<uint32_t> cells(count);
  Scratch<float> numbers(3 * count);
  const SampleRecords records{cells.data(), numbers.data(), numbers.data() + count, numbers.data() + 2 * count};
  dispatch_heads(a, "ms_deform_attn_backward", aligned_to(16, a.value, a.dy),
                 [&]<class T, int V>(T, std::integral_constant<int, V>, dim3 grid) {
                   if (a.b * a.q * a.heads > 0)
                     DEEM_LAUNCH((query_gradients_kernel<T, V>), grid, dim3(kQueryThreads), 0, stream(), a, records);
                   if (!a.dvalue) return;
                   Scatter k{};
                   k.samples = records;
                   k.dy = a.dy;
                   k.dvalue = a.dvalue;
                   k.levels = a.levels;
                   k.b = a.b;
                   k.images = 1;
                   k.q = a.q;
                   k.heads = a.heads;
                   k.dim = a.dim;
                   k.rows = a.rows;
                   k.n_levels = a.n_levels;
                   k.points = a.points;
                   scatter<T>("ms_deform_attn_backward", k);
                 });
}

}  // namespace

DEEM_CUDA_KERNEL("ms_deform_attn", forward);
DEEM_CUDA_KERNEL("ms_deform_attn_backward", backward);

}  // namespace deem::cuda
