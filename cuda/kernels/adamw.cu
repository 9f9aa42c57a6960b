// One launch over all parameters: blocks take equal pieces of the concatenated run, whatever parameters these cut through, and
// every array is read once and written once.
#include "train/adamw_kernel.h"

#include "cuda/reduce.cuh"
#include "cuda/slot.h"
#include "cuda/walk.cuh"

namespace deem::cuda {
namespace {

constexpr int kThreads = 256, kPack = 4;
constexpr int64_t kUpdatePiece = 8192;  // elements of a block of the update, whose pieces matter to no sum

// The first segment that ends after `at`. Every warp looks for itself, in 32 places at a time.
__device__ inline int64_t first_segment(const AdamWSegment* segments, int64_t count, int64_t at) {
  int64_t low = 0, n = count;  // it is one of low..low + n - 1
  const int lane = threadIdx.x % 32;
  while (n > 1) {
    const int64_t step = (n + 31) / 32, probe = low + (lane + 1) * step - 1;
    const bool before = probe < low + n - 1 && segments[probe].end <= at;
    const int64_t passed = __popc(__ballot_sync(0xffffffffu, before)) * step;
    low += passed;
    n = smaller(step, n - passed);
  }
  return low;
}

// Calls f(segment, from, to) for the parts of segments in [begin, end) of the run; from and to count from the segment's start.
template <class F>
__device__ inline void for_segments(const AdamWArgs& a, int64_t begin, int64_t end, const F& f) {
  for (int64_t i = first_segment(a.segments, a.count, begin); i < a.count; i++) {
    const AdamWSegment s = a.segments[i];
    if (s.begin >= end) return;
    const int64_t from = larger(begin, s.begin), to = smaller(end, s.end);
    if (from < to) f(s, from - s.begin, to - s.begin);
  }
}

// Calls f(first element, begin, end) for this thread's packs of a segment, which begin at multiples of kPack from its start, so
// that vectors are aligned wherever pieces cut it. Of a pack at an edge only begin <= k < end belong to the piece.
template <class F>
__device__ inline void for_packs(int64_t from, int64_t to, const F& f) {
  for (int64_t i = from / kPack * kPack + int64_t(threadIdx.x) * kPack; i < to; i += kThreads * kPack)
    f(i, int(larger<int64_t>(0, from - i)), int(smaller<int64_t>(kPack, to - i)));
}

template <class T>
__device__ inline void read_part(const T* p, int begin, int end, bool vector, float (&v)[kPack]) {
  if (vector && begin == 0 && end == kPack) {
    read_floats<kPack>(p, kPack, v);
    return;
  }
#pragma unroll
  for (int k = 0; k < kPack; k++) v[k] = k >= begin && k < end ? to_float(p[k]) : 0.0f;
}

template <class T>
__device__ inline void write_part(T* p, int begin, int end, bool vector, const float (&v)[kPack]) {
  if (vector && begin == 0 && end == kPack) {
    write_floats<kPack>(p, v, kPack);
    return;
  }
#pragma unroll
  for (int k = 0; k < kPack; k++)
    if (k >= begin && k < end) p[k] = from_float<T>(v[k]);
}

// ---- squares ------------------------------------------------------------------------------------------------------

template <class T>
__device__ inline double square_sum(const T* g, int64_t from, int64_t to) {
  const bool vector = is_aligned<kPack>(g);
  double sum = 0;
  for_packs(from, to, [&](int64_t i, int begin, int end) {
    float v[kPack];
    read_part(g + i, begin, end, vector, v);
    double d[kPack];
#pragma unroll
    for (int k = 0; k < kPack; k++) d[k] = double(v[k]) * double(v[k]);
    sum += (d[0] + d[1]) + (d[2] + d[3]);
  });
  return sum;
}

__global__ void __launch_bounds__(kThreads) squares_of_pieces(AdamWArgs a) {
  double sum = 0;
  const int64_t begin = int64_t(blockIdx.x) * a.piece;
  for_segments(a, begin, smaller(a.total, begin + a.piece), [&](const AdamWSegment& s, int64_t from, int64_t to) {
    switch (s.gradient_dtype) {
      case DType::bf16: sum += square_sum(static_cast<const __nv_bfloat16*>(s.gradient), from, to); break;
      case DType::f16: sum += square_sum(static_cast<const __half*>(s.gradient), from, to); break;
      default: sum += square_sum(static_cast<const float*>(s.gradient), from, to);
    }
  });
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) a.squares[blockIdx.x] = sum;
}

void squares(const AdamWArgs& a) {
  const int64_t pieces = a.total > 0 ? (a.total + a.piece - 1) / a.piece : 0;
  if (pieces > 0) DEEM_LAUNCH(squares_of_pieces, dim3(unsigned(pieces)), dim3(kThreads), 0, stream(), a);
}

// ---- update -------------------------------------------------------------------------------------------------------

// T: the parameter, G: its gradient. The update goes to the f32 master where there is one, and rounded to the parameter.
template <class T, class G>
__device__ inline void update_part(const AdamWArgs& a, const AdamWSegment& s, int64_t from, int64_t to) {
  T* parameter = static_cast<T*>(s.parameter);
  const G* gradient = static_cast<const G*>(s.gradient);
  const bool vector = is_aligned<kPack>(parameter) && is_aligned<kPack>(gradient) && is_aligned<kPack>(s.exp_avg) &&
                      is_aligned<kPack>(s.exp_avg_sq) && is_aligned<kPack>(s.master);
  for_packs(from, to, [&](int64_t i, int begin, int end) {
    float g[kPack], m[kPack], v[kPack], w[kPack];
    read_part(gradient + i, begin, end, vector, g);
    read_part(s.exp_avg + i, begin, end, vector, m);
    read_part(s.exp_avg_sq + i, begin, end, vector, v);
    if (s.master) read_part(s.master + i, begin, end, vector, w);
    else read_part(parameter + i, begin, end, vector, w);
#pragma unroll
    for (int k = 0; k < kPack; k++) {
      const float clipped = g[k] * a.clip;
      m[k] += (clipped - m[k]) * a.rest1;
      v[k] = v[k] * a.beta2 + clipped * clipped * a.rest2;
      w[k] = w[k] * s.decay - s.step_size * (m[k] / (sqrtf(v[k]) * s.denominator + a.eps));
    }
    write_part(s.exp_avg + i, begin, end, vector, m);
    write_part(s.exp_avg_sq + i, begin, end, vector, v);
    if (s.master) write_part(s.master + i, begin, end, vector, w);
    write_part(parameter + i, begin, end, vector, w);
  });
}

template <class T>
__device__ inline void update_segment(const AdamWArgs& a, const AdamWSegment& s, int64_t from, int64_t to) {
  if (s.gradient_dtype == DType::f32) update_part<T, float>(a, s, from, to);
  else update_part<T, T>(a, s, from, to);
}

__global__ void __launch_bounds__(kThreads) update_pieces(AdamWArgs a) {
  const int64_t begin = int64_t(blockIdx.x) * kUpdatePiece;
  for_segments(a, begin, smaller(a.total, begin + kUpdatePiece), [&](const AdamWSegment& s, int64_t from, int64_t to) {
    switch (s.dtype) {
      case DType::bf16: return update_segment<__nv_bfloat16>(a, s, from, to);
      case DType::f16: return update_segment<__half>(a, s, from, to);
      default: return update_part<float, float>(a, s, from, to);
    }
  });
}

void update(const AdamWArgs& a) {
  const int64_t pieces = a.total > 0 ? (a.total + kUpdatePiece - 1) / kUpdatePiece : 0;
  if (pieces > 0) DEEM_LAUNCH(update_pieces, dim3(unsigned(pieces)), dim3(kThreads), 0, stream(), a);
}

}  // namespace

DEEM_CUDA_KERNEL("adamw_squares", squares);
DEEM_CUDA_KERNEL("adamw_update", update);

}  // namespace deem::cuda
