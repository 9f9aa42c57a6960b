// A thread takes a band of rows of results, of a register of channels. The rows of the picture under the taps wait in a ring, as floats that
// follow each other, with zeros beside the picture: sums need not ask where they are, and pixels, which lie apart by powers of two, share
// no sets of the cache. Strips of neighbouring results are summed in registers; where the stride is 1, an input is loaded once for all of a strip.
// bf16 may wait in pairs instead (depthwise_pairs.h).
#include "cpu/depthwise.h"

#include "core/memory.h"
#include "cpu/kernels/depthwise_pairs.h"

namespace deem::DEEM_ISA {

constexpr int kStrip = 8;                          // results
constexpr int kLongStrip = kLanes == 16 ? 16 : 8;  // where as many are left and there are registers for them
template <class T>
constexpr int64_t kColumns = kPairs<T> ? 32 : 64;  // results of a row whose inputs are in the ring at a time
constexpr int64_t kFewestRows = 8;                 // of a band; it reads the rows of its neighbours under its taps too
constexpr int64_t kGroup = 32 / kLanes;            // registers of channels a thread takes after each other: whole lines

struct Plan {
  const DepthwiseArgs& a;
  int64_t taps, slots, line;     // rows of the ring, and numbers of one
  int64_t groups, bands, tasks;  // of channels, and of rows
};

// The numbers of a row of taps that loops are unrolled for, or 0.
DEEM_INLINE int64_t unrolled(const ConvSizes& s) {
  return s.stride == 1 && (s.kw == 3 || s.kw == 5 || s.kw == 7) ? s.kw : 0;
}

template <class T>
static Plan plan_of(const DepthwiseArgs& a, int64_t threads) {
  constexpr int64_t kTasks = 8;  // of a thread
  const ConvSizes& s = a.s;
  const int64_t columns = min(kColumns<T>, ceil_div(s.ow, kStrip) * kStrip);
  const int64_t groups = ceil_div(s.in, kGroup * kLanes), wanted = ceil_div(kTasks * threads, groups * s.n);
  const int64_t bands = max<int64_t>(1, min(wanted, s.oh / kFewestRows));
  const int64_t pixels = (columns - 1) * s.stride + s.kw + (kPairs<T> && unrolled(s) > 0 ? 1 : 0);
  return {a, s.kh * s.kw, min(s.kh, s.h), pixels * kLanes, groups, bands, groups * bands * s.n};
}

// ---- what lies in a thread's own memory --------------------------------------------------------------------------------

// The taps of `count` channels from c on, [KH * KW, kLanes], turned over by squares. The last square overlaps the one before.
template <int KW, class T>
static void pack_taps(const Plan& p, int64_t c, int64_t count, float* to) {
  const T* from = (const T*)p.a.weight + c * p.taps;
#if DEEM_ISA_INDEX >= 3
  if constexpr (kPairs<T> && KW > 0) return pack_tap_pairs(from, p.taps, p.a.back, count, to);
#endif
  const int64_t side = min(kLanes, p.taps);
  for (int64_t done = 0; done < p.taps; done += side) {
    const int64_t first = min(done, p.taps - side);
    Vec r[kLanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; i++) {
      const T* line = from + i * p.taps + first;
      r[i] = i >= count ? Vec{} : side == kLanes ? get(line, Whole{}) : get(line, Part{side});
    }
    transpose(r);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; i++)
      if (i < side) store_vec(to + (p.a.back ? p.taps - 1 - first - i : first + i) * kLanes, r[i]);
  }
}

// Pixels first..first + count of a row of the picture, which is `width` pixels `step` numbers apart.
template <int KW, class T, class Part>
DEEM_INLINE void pack_row(const T* row, int64_t width, int64_t step, int64_t first, int64_t count, Part part,
                          float* to) {
#if DEEM_ISA_INDEX >= 3
  if constexpr (kPairs<T> && KW > 0) return pack_row_of_pairs(row, width, step, first, count, part, to);
#endif
  const int64_t left = min(count, max<int64_t>(0, -first)), right = max(left, min(count, width - first));
  clear(to, left * kLanes);
  for (int64_t i = left; i < right; i++) store_vec(to + i * kLanes, get(row + (first + i) * step, part));
  clear(to + right * kLanes, (count - right) * kLanes);
}

// ---- sums ----------------------------------------------------------------------------------------------------------------

// Adds a row of taps to J results, of which the first one's inputs begin at x. KW is 0 where the row has any number of taps, `count`, and
// results any stride.
template <int J, int KW>
DEEM_INLINE void add_row(Vec (&sum)[J], const float* x, const float* taps, int64_t count, int64_t stride) {
  if constexpr (KW == 0) {
    for (int64_t t = 0; t < count; t++) {
      const Vec tap = load_vec(taps + t * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < J; j++) sum[j] += load_vec(x + (j * stride + t) * kLanes) * tap;
    }
  } else {
    Vec tap[KW];
#pragma GCC unroll 8
    for (int t = 0; t < KW; t++) tap[t] = load_vec(taps + t * kLanes);
#pragma GCC unroll 22
    for (int i = 0; i < J + KW - 1; i++) {
      const Vec v = load_vec(x + i * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < KW; t++)
        if (i - t >= 0 && i - t < J) sum[i - t] += v * tap[t];
    }
  }
}

template <int KW, class T, class Part>
DEEM_INLINE void put_sum(T* y, Vec sum, Part part) {
#if DEEM_ISA_INDEX >= 3
  if constexpr (kPairs<T> && KW > 0) return put_rounded(y, sum, part);
#endif
  put(y, sum, part);
}

// What stays the same from row to row.
template <class T>
struct Band {
  const ConvSizes& s;
  const float *ring, *taps;
  int64_t slots, line, column, columns;  // results column..column + columns
  T* y;                                  // of the image and the first channel
  Vec bias;
};

// J results of row oy from r.column + at on, or the first `count` where that is less.
template <int J, int KW, class T, class Part>
DEEM_INLINE void sum_strip(const Band<T>& r, int64_t oy, int64_t at, int64_t count, Part part) {
  const ConvSizes& s = r.s;
  const int64_t top = oy * s.stride - s.pad_top, begin = max<int64_t>(0, -top), end = min(s.kh, s.h - top);
  Vec sum[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; j++) sum[j] = r.bias;
  int64_t slot = (top + begin) % r.slots;
#if DEEM_ISA_INDEX >= 3
  if constexpr (kPairs<T> && KW > 0)
    add_pairs<J, KW>(sum, r.ring + at * kLanes, r.slots, r.line, slot, r.taps, begin, end);
  else
#endif
    for (int64_t kh = begin; kh < end; kh++) {
      add_row<J, KW>(sum, r.ring + slot * r.line + at * s.stride * kLanes, r.taps + kh * s.kw * kLanes, s.kw, s.stride);
      if (++slot == r.slots) slot = 0;
    }
  T* y = r.y + (oy * s.ow + r.column + at) * s.out;
#pragma GCC unroll 16
  for (int j = 0; j < J; j++)
    if (j < count) put_sum<KW>(y + j * s.out, sum[j], part);
}

template <int KW, class T, class Part>
static void sum_row(const Band<T>& r, int64_t oy, Part part) {
  int64_t at = 0;
  for (; at + kLongStrip <= r.columns; at += kLongStrip) sum_strip<kLongStrip, KW>(r, oy, at, kLongStrip, part);
  for (; at < r.columns; at += kStrip) sum_strip<kStrip, KW>(r, oy, at, r.columns - at, part);
}

// Rows begin..end of an image's register of channels from c on.
template <int KW, class T, class Part>
static void convolve_band(const Plan& p, int64_t image, int64_t c, int64_t begin, int64_t end, Part part,
                          const float* taps, float* ring) {
  const ConvSizes& s = p.a.s;
  const T* x = (const T*)p.a.x + image * s.h * s.w * s.in + c;
  Band<T> r{s, ring, taps, p.slots, p.line, 0, 0, (T*)p.a.y + image * s.oh * s.ow * s.out + c, {}};
  if (p.a.bias) r.bias = get((const T*)p.a.bias + c, part);
  for (r.column = 0; r.column < s.ow; r.column += kColumns<T>) {
    r.columns = min(kColumns<T>, s.ow - r.column);
    int64_t next = 0;  // row of the picture to go into the ring
    for (int64_t oy = begin; oy < end; oy++) {
      const int64_t top = oy * s.stride - s.pad_top;
      for (next = max(next, top); next < min(s.h, top + s.kh); next++)
        pack_row<KW>(x + next * s.w * s.in, s.w, s.in, r.column * s.stride - s.pad_left, p.line / kLanes, part,
                     ring + next % p.slots * p.line);
      sum_row<KW>(r, oy, part);
    }
  }
}

// Task i: of a group of channels, one of all bands of all images. `held` is the group whose taps the thread has.
template <int KW, class T>
static void convolve_task(const Plan& p, int64_t i, float* own, int64_t& held) {
  const ConvSizes& s = p.a.s;
  const int64_t group = i / (s.n * p.bands), image = i / p.bands % s.n, band = i % p.bands;
  const int64_t begin = s.oh * band / p.bands, end = s.oh * (band + 1) / p.bands;
  float* ring = own + kGroup * p.taps * kLanes;
  for (int64_t v = 0; v < kGroup; v++) {
    const int64_t c = (group * kGroup + v) * kLanes, count = min(kLanes, s.in - c);
    if (count <= 0) break;
    float* taps = own + v * p.taps * kLanes;
    if (held != group) pack_taps<KW, T>(p, c, count, taps);
    if (count == kLanes) convolve_band<KW, T>(p, image, c, begin, end, Whole{}, taps, ring);
    else convolve_band<KW, T>(p, image, c, begin, end, Part{count}, taps, ring);
  }
  held = group;
}

using Task = void (*)(const Plan&, int64_t, float*, int64_t&);
template <class T>
DEEM_INLINE Task task_of(const ConvSizes& s) {
  switch (unrolled(s)) {
    case 3: return convolve_task<3, T>;
    case 5: return convolve_task<5, T>;
    case 7: return convolve_task<7, T>;
    default: return convolve_task<0, T>;
  }
}

template <class T>
static void convolve(const DepthwiseArgs& a) {
  const ConvSizes& s = a.s;
  const bool small = s.n * s.oh * s.ow * s.kh * s.kw * s.in < 32768;
  const int64_t most = small || in_team() ? 1 : num_threads();
  const Plan p = plan_of<T>(a, most);
  const int64_t threads = min(most, p.tasks), own = kGroup * p.taps * kLanes + p.slots * p.line;
  const size_t bytes = scratch_size(size_t(threads) * (size_t(own) * sizeof(float) + sizeof(int64_t)));
  float* scratch = (float*)allocate_scratch(bytes);
  int64_t* held = (int64_t*)(scratch + threads * own);
  for (int64_t t = 0; t < threads; t++) held[t] = -1;
  parallel_items(threads, p.tasks,
                 [&](int64_t i, int64_t thread) { task_of<T>(s)(p, i, scratch + thread * own, held[thread]); });
  release(scratch, bytes);
}

static void depthwise(const DepthwiseArgs& a) {
  dispatch_float(a.s.dtype, "conv2d", [&]<class T>(T) { convolve<T>(a); });
}

static const Register r{depthwise_kernel, Device::cpu, depthwise};

}  // namespace deem::DEEM_ISA
