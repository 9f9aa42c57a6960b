// How operands of a product become panels of f32 (cpu/kernels/gemm_tile.h). Columns are [number, line]: lines of the source are transposed in
// registers, rows that hold a number of each line are copied; lines that a panel has no use for are zeros. Of rows, lines are copied
// as they lie, or only pointed at.
#pragma once
#include "cpu/gemm.h"
#include "cpu/kernels/gemm_tile.h"
#include "cpu/row.h"

#ifdef DEEM_ISA
namespace deem::DEEM_ISA {

// log2(n) rounds of interleaving the first half of n vectors with the second: number i of all of them, side by side, is then followed by i + 1.
template <int n>
DEEM_INLINE void interleave_vectors(Vec (&r)[n]) {
  typedef int32_t Index [[gnu::vector_size(kLanes * 4)]];
  Index low, high;
  for (int i = 0; i < kLanes; i++) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  Vec t[n];
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; i++) {
      t[2 * i] = __builtin_shuffle(r[i], r[i + n / 2], low);
      t[2 * i + 1] = __builtin_shuffle(r[i], r[i + n / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; i++) r[i] = t[i];
  }
}

// With 8 lanes, whose instructions work on halves of a register, fewer steps within halves that have been exchanged first.
DEEM_INLINE void transpose(Vec (&r)[kLanes]) {
#if DEEM_ISA_INDEX == 1
  Vec h[kLanes], t[kLanes];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    h[i] = __builtin_shuffle(r[i], r[i + 4], IntLanes{0, 1, 2, 3, 8, 9, 10, 11});
    h[i + 4] = __builtin_shuffle(r[i], r[i + 4], IntLanes{4, 5, 6, 7, 12, 13, 14, 15});
  }
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      t[i + j] = _mm256_unpacklo_ps(h[i + 2 * j], h[i + 2 * j + 1]);
      t[i + j + 2] = _mm256_unpackhi_ps(h[i + 2 * j], h[i + 2 * j + 1]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + 2 * j], t[i + 2 * j + 1], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + 2 * j], t[i + 2 * j + 1], 0xee);
    }
  }
#else
  interleave_vectors(r);
#endif
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

DEEM_INLINE void clear(float* to, int64_t length) {
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) store_vec(to + i, Vec{});
  if (i < length) store_part(to + i, Vec{}, length - i);
}

// Where the windows of a convolution lie in the picture. A row of a window's taps is a run of kw * in numbers in a row of the picture.
struct Windows {
  const ConvSizes& c;
  int64_t image, row, column;  // the output pixel

  DEEM_INLINE Windows(const ConvSizes& c, int64_t pixel) : c(c) {
    const int64_t area = c.oh * c.ow;
    image = pixel / area, row = pixel % area / c.ow, column = pixel % c.ow;
  }
  // The row of the picture under a row of taps, in all of them; -1 outside.
  DEEM_INLINE int64_t picture_row(int64_t kh) const {
    const int64_t y = row * c.stride - c.pad_top + kh;
    return y < 0 || y >= c.h ? -1 : image * c.h + y;
  }
  // The number in that row where the taps begin; it may lie before the row.
  DEEM_INLINE int64_t begin() const { return (column * c.stride - c.pad_left) * c.in; }
  // Whether all of the window is in the picture.
  DEEM_INLINE bool inside() const {
    const int64_t y = row * c.stride - c.pad_top, x = column * c.stride - c.pad_left;
    return y >= 0 && y + c.kh <= c.h && x >= 0 && x + c.kw <= c.w;
  }
  DEEM_INLINE void step() {
    if (++column < c.ow) return;
    column = 0;
    if (++row < c.oh) return;
    row = 0, image++;
  }
};

// Lines first..first + lines of a source, numbers begin..begin + length of each, as panels of `height` lines, `stride` apart.
using Pack = void (*)(const PackSource&, int64_t height, int64_t first, int64_t lines, int64_t begin, int64_t length,
                      float* to, int64_t stride);

// ---- panels of rows, by line ----------------------------------------------------------------------------------------

// Numbers p..p + length of a line whose number 0 belongs at `to`; zeros where `from` is null.
template <class T>
DEEM_INLINE void place(const T* from, int64_t p, int64_t length, float* to) {
  float* at = to + p / kLanes * (kRows * kLanes);
  if (const int64_t in = p % kLanes; in != 0) {
    const int64_t count = min(kLanes - in, length);
    store_part(at + in, from ? load_part(from, count) : Vec{}, count);
    if (from) from += count;
    length -= count, at += kRows * kLanes;
  }
  if (from)
    for (; length >= kLanes; length -= kLanes, from += kLanes, at += kRows * kLanes) store_vec(at, load_vec(from));
  else
    for (; length >= kLanes; length -= kLanes, at += kRows * kLanes) store_vec(at, Vec{});
  if (length > 0) store_part(at, from ? load_part(from, length) : Vec{}, length);
}

template <class T>
static void pack_lines_by_line(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin,
                               int64_t length, float* to, int64_t stride) {
  for (int64_t panel = 0; panel < lines; panel += height, to += stride)
    for (int64_t i = 0; i < min(height, lines - panel); i++)
      place((const T*)s.data + (first + panel + i) * s.stride + begin, 0, length, to + i * kLanes);
}

// Numbers of a patch that lie side by side both in the picture and in a panel.
struct Piece {
  int64_t from, to, count;  // `from` from the patch's first number on; count is at most kLanes
};
// Those of numbers begin..begin + length. 0 where they are too many, or long: then to find each anew takes less time than to copy it.
template <int kMost>
DEEM_INLINE int pieces_of(const ConvSizes& c, int64_t begin, int64_t length, Piece (&pieces)[kMost]) {
  const int64_t taps = c.kw * c.in, width = c.w * c.in;
  if (taps > 2 * kLanes) return 0;
  int n = 0;
  for (int64_t p = 0, count; p < length; p += count) {
    if (n == kMost) return 0;
    const int64_t kh = (begin + p) / taps, at = (begin + p) % taps;
    count = min(min(taps - at, length - p), kLanes - p % kLanes);
    pieces[n++] = {kh * width + at, p / kLanes * (kRows * kLanes) + p % kLanes, count};
  }
  return n;
}

template <class T>
static void pack_patches_by_line(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin,
                                 int64_t length, float* to, int64_t stride) {
  const ConvSizes& c = *s.conv;
  const int64_t taps = c.kw * c.in, width = c.w * c.in;  // numbers of a row of taps, and of the picture
  Windows window(c, first);
  Piece pieces[64];
  const int n = pieces_of(c, begin, length, pieces);
  for (int64_t panel = 0; panel < lines; panel += height, to += stride)
    for (int64_t i = 0; i < min(height, lines - panel); i++, window.step()) {
      float* line = to + i * kLanes;
      if (n > 0 && window.inside()) {
        const T* patch = (const T*)s.data + window.picture_row(0) * width + window.begin();
        for (int j = 0; j < n; j++)
          store_part(line + pieces[j].to, load_part(patch + pieces[j].from, pieces[j].count), pieces[j].count);
        continue;
      }
      int64_t kh = begin / taps, at = begin % taps;  // the row of taps, and the number in it
      for (int64_t p = 0, run; p < length; p += run, kh++, at = 0) {
        run = min(taps - at, length - p);
        const int64_t row = window.picture_row(kh), x = window.begin() + at;
        const int64_t from = row < 0 ? run : min(run, max<int64_t>(0, -x)), end = max(from, min(run, width - x));
        if (from > 0) place<T>(nullptr, p, from, line);
        if (from < end) place((const T*)s.data + row * width + x + from, p + from, end - from, line);
        if (end < run) place<T>(nullptr, p + end, run - end, line);
      }
    }
}

// ---- rows of f32 where they lie -------------------------------------------------------------------------------------

// A panel's Stretches take the place of its numbers, of which it has room for more: 120 bytes for 64 numbers of 14 lines.
template <class T>
static void point_at_lines(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin,
                           int64_t length, float* to, int64_t stride) {
  for (int64_t panel = 0; panel < lines; panel += height, to += stride) {
    Stretch& stretch = *(Stretch*)to;
    stretch.length = length;
    for (int64_t i = 0; i < min(height, lines - panel); i++)
      stretch.line[i] = (const T*)s.data + (first + panel + i) * s.stride + begin;
  }
}

// Channels of a patch's pixel, at least and at most: a stretch of fewer would be short, and of pixels outside the picture it is kZeros.
constexpr int64_t kFewestInPlace = 64, kMostInPlace = 2048;
alignas(64) static const float kZeros[kMostInPlace] = {};

template <class T>
static void point_at_patches(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin,
                             int64_t length, float* to, int64_t stride) {
  const ConvSizes& c = *s.conv;
  Windows window(c, first);
  for (int64_t panel = 0; panel < lines; panel += height, to += stride)
    for (int64_t i = 0; i < min(height, lines - panel); i++, window.step()) {
      auto stretch = (Stretch*)to;
      for (int64_t p = begin, count; p < begin + length; p += count, stretch++) {
        const int64_t tap = p / c.in, channel = p % c.in;
        count = min(c.in - channel, begin + length - p);
        const int64_t row = window.picture_row(tap / c.kw), x = window.begin() + tap % c.kw * c.in;
        const bool inside = row >= 0 && x >= 0 && x < c.w * c.in;
        stretch->length = count;
        stretch->line[i] = inside ? (const T*)s.data + row * c.w * c.in + x + channel : kZeros;
      }
    }
}

// Whether lines can be read where they lie. Not where they are a multiple of 4 KB apart: they would share few sets of a cache.
DEEM_INLINE bool in_place(RowsOf rows, const PackSource& a) {
  constexpr int64_t kApart = 4096 / int64_t(sizeof(float));
  if (rows == RowsOf::lines) return a.stride % kApart != 0;
  if (rows == RowsOf::across) return false;
  return a.conv->in >= kFewestInPlace && a.conv->in <= kMostInPlace && a.conv->in * a.conv->stride % kApart != 0;
}

// ---- panels by number -----------------------------------------------------------------------------------------------

template <class T, int W>
static void pack_lines(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin, int64_t length,
                       float* to, int64_t stride) {
  for (int64_t panel = 0; panel < lines; panel += height, to += stride) {
    const T* line[W];
    for (int i = 0; i < W; i++)
      line[i] = i < min(height, lines - panel) ? (const T*)s.data + (first + panel + i) * s.stride + begin : nullptr;
    interleave<W>(line, length, to);
  }
}

// Row p, from line `first` on.
template <class T, bool kTaps>
DEEM_INLINE const T* row_of(const PackSource& s, int64_t first, int64_t p) {
  if constexpr (!kTaps) return (const T*)s.data + p * s.stride + first;
  const ConvSizes& c = *s.conv;
  const int64_t taps = c.kh * c.kw, tap = taps - 1 - p / c.out;
  return (const T*)s.data + (p % c.out * taps + tap) * c.in + first;
}

template <class T, bool kTaps, int W>
static void pack_rows(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin, int64_t length,
                      float* to, int64_t stride) {
  constexpr int64_t kAtOnce = 16;  // rows; they lie far apart, where the hardware does not look ahead
  for (int64_t from = 0; from < length; from += kAtOnce) {
    const int64_t end = min(length, from + kAtOnce);
    for (int64_t p = from; p < end && end < length; p++) {
      const T* next = row_of<T, kTaps>(s, first, begin + min(p + kAtOnce, length - 1));
      for (int64_t i = 0; i < lines; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(next + i);
    }
    for (int64_t panel = 0; panel < lines; panel += height) {
      const int64_t count = min(height, lines - panel);
      float* at = to + panel / height * stride;
      for (int64_t p = from; p < end; p++) {
        const T* row = row_of<T, kTaps>(s, first, begin + p) + panel;
        // Where there are more lines, also those beyond the panel's own, which nobody reads.
        if (panel + W <= lines) convert_row(row, W, at + p * W);
        else convert_row(row, count, at + p * W), clear(at + p * W + count, W - count);
      }
    }
  }
}

// A row of output pixels at a time, of which each panel takes the numbers under its taps.
template <class T, int W>
static void pack_patches(const PackSource& s, int64_t height, int64_t first, int64_t lines, int64_t begin,
                         int64_t length, float* to, int64_t stride) {
  const ConvSizes& c = *s.conv;
  const int64_t taps = c.kw * c.in, width = c.w * c.in, step = c.stride * c.in;
  Windows window(c, begin);
  for (int64_t p = 0, run; p < length; p += run, to += run * W) {
    run = min(c.ow - window.column, length - p);
    for (int64_t panel = 0; panel < lines; panel += height) {
      const int64_t count = min(height, lines - panel);
      float* at = to + panel / height * stride;
      for (int64_t i = 0, part; i < count; i += part) {
        const int64_t kh = (first + panel + i) / taps, number = (first + panel + i) % taps;
        part = min(taps - number, count - i);
        const int64_t row = window.picture_row(kh);
        int64_t x = row < 0 ? width : window.begin() + number;
        const T* from = (const T*)s.data + row * width + x;
        float* pixel = at + i;
        for (int64_t q = 0; q < run;) {
          // Pixels whose numbers are all inside, or one that has zeros.
          const int64_t whole = x < 0 || x + part > width ? 0 : min(run - q, (width - part - x) / step + 1);
          if (part == W)
            for (int64_t r = 0; r < whole; r++) convert_row(from + r * step, W, pixel + r * W);
          else
            for (int64_t r = 0; r < whole; r++) convert_row(from + r * step, part, pixel + r * W);
          if (whole == 0) {
            const int64_t begins = min(part, max<int64_t>(0, -x)), ends = max(begins, min(part, width - x));
            clear(pixel, begins);
            convert_row(from + begins, ends - begins, pixel + begins);
            clear(pixel + ends, part - ends);
          }
          const int64_t done = max<int64_t>(whole, 1);
          q += done, x += done * step, from += done * step, pixel += done * W;
        }
      }
      if (count < W)
        for (int64_t q = 0; q < run; q++) clear(at + q * W + count, W - count);
    }
    window.column += run - 1;
    window.step();
  }
}

// ---- which ----------------------------------------------------------------------------------------------------------

template <class T>
DEEM_INLINE Pack pack_of(RowsOf rows) {
  switch (rows) {
    case RowsOf::lines: return pack_lines_by_line<T>;
    case RowsOf::across: return pack_rows<T, false, kRowSpan>;
    case RowsOf::patches: return pack_patches_by_line<T>;
  }
  return nullptr;
}
template <class T>
DEEM_INLINE Pack pack_of(ColumnsOf columns) {
  switch (columns) {
    case ColumnsOf::lines: return pack_lines<T, kCols>;
    case ColumnsOf::across: return pack_rows<T, false, kCols>;
    case ColumnsOf::patches: return pack_patches<T, kCols>;
    case ColumnsOf::taps: return pack_rows<T, true, kCols>;
  }
  return nullptr;
}

}  // namespace deem::DEEM_ISA
#endif
