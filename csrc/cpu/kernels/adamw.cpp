#include "train/adamw_kernel.h"

#include "cpu/doubles.h"

namespace deem::DEEM_ISA {

// Calls f(segment, from, to) for the parts of segments that lie in [begin, end) of the concatenated run; from and to
// count from the start of the segment.
template <class F>
DEEM_INLINE void for_segments(const AdamWArgs& a, int64_t begin, int64_t end, F&& f) {
  int64_t low = 0, high = a.count - 1;  // first segment that ends after begin
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (a.segments[middle].end > begin) high = middle;
    else low = middle + 1;
  }
  for (int64_t i = low; i < a.count && a.segments[i].begin < end; i++) {
    const AdamWSegment& s = a.segments[i];
    int64_t from = max(begin, s.begin), to = min(end, s.end);
    if (from < to) f(s, from - s.begin, to - s.begin);
  }
}

static void squares(const AdamWArgs& a) {
  parallel_for((a.total + a.piece - 1) / a.piece, a.piece, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) {
      double sum = 0;
      for_segments(a, k * a.piece, min(a.total, (k + 1) * a.piece),
                   [&](const AdamWSegment& s, int64_t from, int64_t to) {
                     dispatch_float(s.gradient_dtype, "adamw", [&]<class T>(T) {
                       sum += sum_of_squares<T>((const T*)s.gradient + from, nullptr, to - from);
                     });
                   });
      a.squares[k] = sum;
    }
  });
}

// Where the rounded weights go; nowhere where the parameter itself is what is updated.
struct NoShadow {
  DEEM_INLINE void put(int64_t, float) const {}
};
template <class T>
struct Shadow {
  T* p;
  DEEM_INLINE void put(int64_t i, float w) const { store(p + i, w); }
};

// One pass: every array is read once and written once.
template <class W, class G, class S>
DEEM_INLINE void update_part(const AdamWArgs& a, const AdamWSegment& s, W* w, S shadow, int64_t from, int64_t to) {
  const G* gradient = (const G*)s.gradient;
  float *m = s.exp_avg, *v = s.exp_avg_sq;
  float beta2 = a.beta2, rest1 = a.rest1, rest2 = a.rest2, eps = a.eps, clip = a.clip;
  float decay = s.decay, step_size = s.step_size, denominator = s.denominator;
#pragma omp simd
  for (int64_t i = from; i < to; i++) {
    float g = load(gradient + i) * clip;
    float mean = m[i] + (g - m[i]) * rest1;
    float square = v[i] * beta2 + g * g * rest2;
    float next = load(w + i) * decay - step_size * (mean / (std::sqrt(square) * denominator + eps));
    m[i] = mean;
    v[i] = square;
    store(w + i, next);
    shadow.put(i, next);
  }
}

template <class T, class G>
static void update_segment(const AdamWArgs& a, const AdamWSegment& s, int64_t from, int64_t to) {
  T* p = (T*)s.parameter;
  if (s.master) update_part<float, G>(a, s, s.master, Shadow<T>{p}, from, to);
  else update_part<T, G>(a, s, p, NoShadow{}, from, to);
}

static void update(const AdamWArgs& a) {
  parallel_for((a.total + a.piece - 1) / a.piece, a.piece * 4, [&](int64_t begin, int64_t end) {
    // One run per thread: pieces only matter to the sums.
    for_segments(a, begin * a.piece, min(a.total, end * a.piece), [&](const AdamWSegment& s, int64_t from, int64_t to) {
      dispatch_float(s.dtype, "adamw", [&]<class T>(T) {
        if (s.gradient_dtype == DType::f32) update_segment<T, float>(a, s, from, to);
        else update_segment<T, T>(a, s, from, to);
      });
    });
  });
}

static const Register r1{adamw_squares_kernel, Device::cpu, squares};
static const Register r2{adamw_update_kernel, Device::cpu, update};

}  // namespace deem::DEEM_ISA
