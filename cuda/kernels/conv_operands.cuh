// Convolutions as matrix products whose operands are gathered: out[m, n] = sum over d of A[m, d] * B[n, d].
//   forward:  m = output pixel, n = output channel, d = (kh, kw, input channel)
//   data:     m = input pixel of one residue modulo the stride, n = input channel, d = (kh, kw of that residue, output channel)
//   weights:  m = output channel, n = (kh, kw, input channel), d = output pixel
// An operand names its elements by a line (m or n, fixed for a thread or a vector) and a depth, each decoded once:
//   line(i), depth(d): i, d count from the block's first;  at(line, depth): the element's address, null where it is zero.
// kAlongDepth says which of the two neighbouring elements in memory follow.
#pragma once
#include "cuda/kernels/conv.cuh"

namespace deem::cuda::conv {

// n / d of 0 <= n < 2^31 by a multiplication, for 1 <= d < 2^31 (Granlund and Montgomery 1994, section 4).
struct Divisor {
  uint32_t d = 1, multiplier = 1, shift = 0;
  Divisor() = default;
  explicit Divisor(int64_t divisor) : d(uint32_t(divisor)) {
    while ((int64_t(1) << shift) < divisor) shift++;
    multiplier = uint32_t((((uint64_t(1) << shift) - d) << 32) / d + 1);
  }
  DEEM_DEVICE uint32_t quotient(uint32_t n) const { return (__umulhi(n, multiplier) + n) >> shift; }
};

// A feature map [n, h, w, c] read at (image, i * step + top + th, j * step + left + tw, channel) for pixels (image, i, j) of a
// grid and taps (th, tw, channel); zero outside.
template <class T>
struct Map {
  const T* data;
  int h, w, c, step, top, left;
  int taps;                                          // th * tw * c
  Divisor per_image, per_row, per_tap, per_tap_row;  // pixels of a grid, of its row; c; tw
  int64_t pixels;                                    // in all images; after start() those of the block
  int64_t first_image = 0;                           // of the block: `data` is moved there
  int first = 0, first_tap = 0;                      // the block's first pixel in that image, its first tap

  struct Pixel {
    const T* image;  // null: no such pixel
    int h, w;
  };
  struct Tap {
    int h, w, c;  // c < 0: no such tap
  };

  DEEM_DEVICE void start(int64_t pixel, int64_t count) {
    first_image = pixel / per_image.d;
    data += first_image * (int64_t(h) * w * c);
    first = int(pixel - first_image * per_image.d);
    pixels = count < pixels - pixel ? count : pixels - pixel;
  }
  DEEM_DEVICE Pixel pixel(int i) const {
    const uint32_t p = uint32_t(first + i), image = per_image.quotient(p), rest = p - image * per_image.d;
    const uint32_t row = per_row.quotient(rest);
    return {i < pixels ? data + image * (int64_t(h) * w * c) : nullptr, int(row) * step + top,
            int(rest - row * per_row.d) * step + left};
  }
  DEEM_DEVICE Tap tap(int i) const {
    const uint32_t k = uint32_t(first_tap + i), t = per_tap.quotient(k), row = per_tap_row.quotient(t);
    return {int(row), int(t - row * per_tap_row.d), int(k) < taps ? int(k - t * per_tap.d) : -1};
  }
  DEEM_DEVICE const T* at(const Pixel& p, const Tap& t) const {
    const int ih = p.h + t.h, iw = p.w + t.w;
    const bool inside = p.image && t.c >= 0 && uint32_t(ih) < uint32_t(h) && uint32_t(iw) < uint32_t(w);
    return inside ? p.image + (int64_t(ih * w + iw) * c + t.c) : nullptr;
  }
};

// Elements that a copy may take at once: a power of two up to a vector that divides the channels and the address.
template <class T>
int grain_of(const void* p, int64_t channels) {
  int grain = kVecWidth<T>;
  while (grain > 1 && (channels % grain || reinterpret_cast<uintptr_t>(p) % (grain * sizeof(T)))) grain /= 2;
  return grain;
}

template <class T>
struct PixelsByTaps {
  using Type = T;
  static constexpr bool kAlongDepth = true;
  using Line = typename Map<T>::Pixel;
  using Depth = typename Map<T>::Tap;
  Map<T> map;
  int grain;
  DEEM_DEVICE Line line(int i) const { return map.pixel(i); }
  DEEM_DEVICE Depth depth(int k) const { return map.tap(k); }
  DEEM_DEVICE const T* at(const Line& p, const Depth& t) const { return map.at(p, t); }
  DEEM_DEVICE const T* any() const { return map.data; }
};

template <class T>
struct TapsByPixels {
  using Type = T;
  static constexpr bool kAlongDepth = false;
  using Line = typename Map<T>::Tap;
  using Depth = typename Map<T>::Pixel;
  Map<T> map;
  int grain;
  DEEM_DEVICE Line line(int i) const { return map.tap(i); }
  DEEM_DEVICE Depth depth(int p) const { return map.pixel(p); }
  DEEM_DEVICE const T* at(const Line& t, const Depth& p) const { return map.at(p, t); }
  DEEM_DEVICE const T* any() const { return map.data; }
};

// A matrix [lines, depth], rows one after the other: a convolution's filters.
template <class T>
struct Filters {
  using Type = T;
  using Line = const T*;
  using Depth = int;
  static constexpr bool kAlongDepth = true;
  const T* data;
  int lines, length, grain;
  int first = 0, first_depth = 0;
  DEEM_DEVICE const T* line(int i) const { return first + i < lines ? data + int64_t(first + i) * length : nullptr; }
  DEEM_DEVICE int depth(int k) const { return first_depth + k; }
  DEEM_DEVICE const T* at(const T* row, int k) const { return row && k < length ? row + k : nullptr; }
  DEEM_DEVICE const T* any() const { return data; }
};

// Filters [out, kh, kw, in] by (input channel) and (tap, output channel), where tap (th, tw) of the walk is the filter's
// (last_h - th * step, last_w - tw * step).
template <class T>
struct FlippedFilters {
  using Type = T;
  using Line = int;
  using Depth = const T*;
  static constexpr bool kAlongDepth = false;
  const T* data;
  int out, kh, kw, in, step, grain;
  Divisor per_tap;           // out
  Divisor per_tap_row = {};  // tw
  int last_h = 0, last_w = 0, length = 0, first = 0, first_depth = 0;
  DEEM_DEVICE int line(int i) const { return first + i < in ? first + i : -1; }
  DEEM_DEVICE const T* depth(int i) const {
    const uint32_t k = uint32_t(first_depth + i), t = per_tap.quotient(k), row = per_tap_row.quotient(t);
    const int o = int(k - t * per_tap.d), h = last_h - int(row) * step,
              w = last_w - int(t - row * per_tap_row.d) * step;
    return int(k) < length ? data + ((int64_t(o) * kh + h) * kw + w) * in : nullptr;
  }
  DEEM_DEVICE const T* at(int c, const T* row) const { return row && c >= 0 ? row + c : nullptr; }
  DEEM_DEVICE const T* any() const { return data; }
};

// A matrix [depth, lines]: dy, whose rows are pixels.
template <class T>
struct Columns {
  using Type = T;
  using Line = int;
  using Depth = const T*;
  static constexpr bool kAlongDepth = false;
  const T* data;
  int lines, grain;
  int64_t rows;  // from `data` on
  int first = 0;
  DEEM_DEVICE int line(int i) const { return first + i < lines ? first + i : -1; }
  DEEM_DEVICE const T* depth(int p) const { return p < rows ? data + int64_t(p) * lines : nullptr; }
  DEEM_DEVICE const T* at(int o, const T* row) const { return row && o >= 0 ? row + o : nullptr; }
  DEEM_DEVICE const T* any() const { return data; }
};

}  // namespace deem::cuda::conv
