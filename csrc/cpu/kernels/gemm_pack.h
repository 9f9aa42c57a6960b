// How operands of a product become panels of f32: [number, line], `height` lines beside each other, zeros in the lines that a panel has no
// use for. A source is read by lines, which are transposed in registers, or by rows that hold a number of each line.
#pragma once
#include "cpu/gemm.h"
#include "cpu/simd.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// log2(kLanes) rounds of interleaving the first half of the vectors with the second.
DEEM_INLINE void transpose(Vec (&r)[kLanes]) {
  typedef int32_t Index [[gnu::vector_size(kLanes * 4)]];
  Index low, high;
  for (int i = 0; i < kLanes; i++) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  Vec t[kLanes];
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; i++) {
      t[2 * i] = __builtin_shuffle(r[i], r[i + kLanes / 2], low);
      t[2 * i + 1] = __builtin_shuffle(r[i], r[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) r[i] = t[i];
  }
}

// `length` numbers of up to W lines, those of a null line zeros, as [length, W].
template <int W, class T>
DEEM_INLINE void interleave(const T* const (&line)[W], int64_t length, float* to) {
  int64_t p = 0;
  for (; p + kLanes <= length; p += kLanes)
    for (int g = 0; g < W; g += kLanes) {
      Vec r[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) r[i] = line[g + i] ? load_vec(line[g + i] + p) : Vec{};
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) store_vec(to + (p + i) * W + g, r[i]);
    }
  for (; p < length; p++)
    for (int i = 0; i < W; i++) to[p * W + i] = line[i] ? load(line[i] + p) : 0.0f;
}

// `length` numbers of a row, zeros where it is null.
template <class T>
DEEM_INLINE void widen(const T* row, int64_t length, float* to) {
  int64_t i = 0;
  if (row) {
    for (; i + kLanes <= length; i += kLanes) store_vec(to + i, load_vec(row + i));
    for (; i < length; i++) to[i] = load(row + i);
  } else {
    for (; i < length; i++) to[i] = 0.0f;
  }
}

// A tap's way over the output pixels.
template <class T>
struct Tap {
  const ConvSizes& c;
  const T* data;
  int64_t dy, dx;              // of the tap
  int64_t image, row, column;  // the output pixel

  DEEM_INLINE Tap(const PackSource& s, int64_t tap, int64_t pixel) : c(*s.conv), data((const T*)s.data) {
    dy = tap / c.kw - c.pad_top, dx = tap % c.kw - c.pad_left;
    const int64_t area = c.oh * c.ow;
    image = pixel / area, row = pixel % area / c.ow, column = pixel % c.ow;
  }
  // Channel 0 of what lies under the tap; null outside.
  DEEM_INLINE const T* at() const {
    const int64_t y = row * c.stride + dy, x = column * c.stride + dx;
    return y < 0 || y >= c.h || x < 0 || x >= c.w ? nullptr : data + ((image * c.h + y) * c.w + x) * c.in;
  }
  DEEM_INLINE void step() {
    if (++column < c.ow) return;
    column = 0;
    if (++row < c.oh) return;
    row = 0, image++;
  }
};

// Lines first..first + lines of a source, numbers begin..begin + length of each, as panels of `height` lines with room for W.
using Pack = void (*)(const PackSource&, int64_t height, int64_t first, int64_t lines, int64_t begin, int64_t length,
                      float* to);

template <class T, int W>
static void pack_lines(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin, int64_t length,
                       float* to) {
  for (int64_t panel = 0; panel < lines; panel += height, to += length * W) {
    const T* line[W];
    for (int i = 0; i < W; i++)
      line[i] = i < min(height, lines - panel) ? (const T*)s.data + (first + panel + i) * s.stride + begin : nullptr;
    interleave<W>(line, length, to);
  }
}

// A panel of output pixels at a time. Where all of a panel's windows are inside from left to right, a row of taps is one run.
template <class T, int W>
static void pack_patch_lines(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin,
                             int64_t length, float* to) {
  const ConvSizes& c = *s.conv;
  const int64_t row = c.kw * c.in;  // of taps
  for (int64_t panel = 0; panel < lines; panel += height, to += length * W) {
    const int64_t count = min(height, lines - panel);
    int64_t y[W], x[W], offset[W];  // of the first tap
    bool inside = true;
    Tap<T> window(s, 0, first + panel);
    for (int i = 0; i < count; i++, window.step()) {
      y[i] = window.row * c.stride - c.pad_top, x[i] = window.column * c.stride - c.pad_left;
      offset[i] = ((window.image * c.h + y[i]) * c.w + x[i]) * c.in;
      inside = inside && x[i] >= 0 && x[i] + c.kw <= c.w;
    }
    int64_t kh = begin / row, at = begin % row;  // the tap's row, and the number in it
    for (int64_t p = 0, run; p < length; p += run) {
      const int64_t kw = at / c.in;
      run = min(inside ? row - at : c.in - at % c.in, length - p);
      const T* line[W];
      for (int i = 0; i < W; i++) {
        const bool seen =
            i < count && y[i] + kh >= 0 && y[i] + kh < c.h && (inside || (x[i] + kw >= 0 && x[i] + kw < c.w));
        line[i] = seen ? (const T*)s.data + offset[i] + kh * c.w * c.in + at : nullptr;
      }
      interleave<W>(line, run, to + p * W);
      at += run;
      if (at == row) at = 0, kh++;
    }
  }
}

// Row p, from line `first` on.
template <class T, Packing P>
DEEM_INLINE const T* row_of(const PackSource& s, int64_t first, int64_t p) {
  if constexpr (P == Packing::rows) return (const T*)s.data + p * s.stride + first;
  const ConvSizes& c = *s.conv;
  const int64_t taps = c.kh * c.kw, tap = taps - 1 - p / c.out;
  return (const T*)s.data + (p % c.out * taps + tap) * c.in + first;
}

template <class T, Packing P, int W>
static void pack_by_row(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin,
                        int64_t length, float* to) {
  // They lie far apart, where the hardware does not look ahead.
  const int64_t rows_at_once = P == Packing::patch_rows ? max<int64_t>(length, 1) : 16;
  for (int64_t from = 0; from < length; from += rows_at_once) {
    const int64_t end = min(length, from + rows_at_once);
    for (int64_t p = from; p < end && P != Packing::patch_rows && end < length; p++) {
      const T* next = row_of<T, P>(s, first, begin + min(p + rows_at_once, length - 1));
      for (int64_t i = 0; i < lines; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(next + i);
    }
    for (int64_t panel = 0; panel < lines; panel += height) {
      const int64_t count = min(height, lines - panel);
      float* at = to + panel / height * (length * W) + from * W;
      if constexpr (P == Packing::patch_rows) {
        const int64_t in = s.conv->in;
        for (int64_t i = 0, run; i < count; i += run) {
          const int64_t tap = (first + panel + i) / in, channel = (first + panel + i) % in;
          run = min(in - channel, count - i);
          Tap<T> under(s, tap, begin + from);
          for (int64_t p = from; p < end; p++, under.step()) {
            const T* pixel = under.at();
            if (run == W) widen(pixel ? pixel + channel : nullptr, W, at + (p - from) * W);
            else widen(pixel ? pixel + channel : nullptr, run, at + (p - from) * W + i);
          }
        }
      } else {
        for (int64_t p = from; p < end; p++) {
          const T* row = row_of<T, P>(s, first, begin + p) + panel;
          // Where there are more lines, also those beyond the panel's own, which nobody reads.
          if (panel + W <= lines) widen(row, W, at + (p - from) * W);
          else widen(row, count, at + (p - from) * W);
        }
        if (panel + W <= lines) continue;
      }
      for (int64_t p = from; p < end; p++)
        for (int64_t i = count; i < W; i++) at[(p - from) * W + i] = 0.0f;
    }
  }
}

template <class T, int W>
DEEM_INLINE Pack pack_of(Packing packing) {
  switch (packing) {
    case Packing::lines: return pack_lines<T, W>;
    case Packing::rows: return pack_by_row<T, Packing::rows, W>;
    case Packing::patch_lines: return pack_patch_lines<T, W>;
    case Packing::patch_rows: return pack_by_row<T, Packing::patch_rows, W>;
    case Packing::tap_rows: return pack_by_row<T, Packing::tap_rows, W>;
  }
  return nullptr;
}

}  // namespace deem::DEEM_ISA
#endif
