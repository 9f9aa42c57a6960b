// The three products of a convolution for one block: where its operands begin, how many steps it takes, where it writes.
#pragma once
#include "cuda/kernels/conv_operands.cuh"

namespace deem::cuda::conv {

// A block's place among tiles of the output, residues modulo the stride and parts of the depth.
struct Place {
  int64_t m;
  int n, residue, split;
};
struct Tiles {
  uint32_t along_m, along_n, residues, splits;
  template <class Tile>
  DEEM_DEVICE Place place(uint32_t block) const {  // along n first: neighbouring blocks share pixels
    const uint32_t n = block % along_n, rest = block / along_n, m = rest % along_m, outer = rest / along_m;
    return {int64_t(m) * Tile::kM, int(n) * Tile::kN, int(outer % residues), int(outer / residues)};
  }
};

// Rows of `cols` elements. With a split depth every part writes its sums to partial [splits, rows, cols] instead.
template <class T>
struct Output {
  T* data;
  const T* bias;  // [cols] or null
  int64_t rows;
  int cols, grain;
  float* partial = nullptr;
};

// The part of `steps` that a split does.
struct Part {
  int64_t begin, end;
  DEEM_DEVICE Part(int64_t steps, const Place& p, const Tiles& t)
      : begin(steps * p.split / t.splits), end(steps * (p.split + 1) / t.splits) {}
};

template <class T>
struct Forward {
  using Type = T;
  static constexpr bool kFewColumns = true;  // an output of 3 or 4 channels is usual
  PixelsByTaps<T> a;
  Filters<T> b;
  Output<T> out;
  Tiles tiles;
  int steps = 0;
  int64_t first_row = 0;

  template <class Tile>
  DEEM_DEVICE void start(const Place& p) {
    const Part part((b.length + Tile::kDepth - 1) / Tile::kDepth, p, tiles);
    a.map.start(p.m, Tile::kM);
    b.first = p.n;
    a.map.first_tap = b.first_depth = int(part.begin) * Tile::kDepth;
    steps = int(part.end - part.begin);
    first_row = p.m;
  }
  DEEM_DEVICE int64_t row(int i) const { return i < a.map.pixels ? first_row + i : -1; }
};

// Input pixel (ih, iw) takes part in the sums of output pixel ((ih + pad - kh) / stride, ...) for the taps where that divides:
// all pixels of one residue modulo the stride have the same taps, and these walk over dy as a convolution of stride 1 does.
template <class T>
struct Data {
  using Type = T;
  static constexpr bool kFewColumns = false;
  PixelsByTaps<T> a;  // of dy, over the pixels (i, j) of a residue
  FlippedFilters<T> b;
  Output<T> out;
  Tiles tiles;
  int h, w, stride, pad_top, pad_left;
  int residues_w;                  // residues are (residue / residues_w, residue % residues_w)
  Divisor few_taps, one_more_tap;  // the walk is kw / stride taps wide, or one more
  int steps = 0, residue_h = 0, residue_w = 0;

  // Taps of a residue: first, first + stride, ... below `size`.
  DEEM_DEVICE static int taps(int size, int first, int stride) {
    return first < size ? (size - 1 - first) / stride + 1 : 0;
  }

  template <class Tile>
  DEEM_DEVICE void start(const Place& p) {
    residue_h = p.residue / residues_w, residue_w = p.residue % residues_w;
    const int kh = (residue_h + pad_top) % stride, kw = (residue_w + pad_left) % stride;
    const int high = taps(b.kh, kh, stride), wide = taps(b.kw, kw, stride);
    a.map.start(p.m, Tile::kM);
    a.map.top = (residue_h + pad_top - kh) / stride - (high - 1);
    a.map.left = (residue_w + pad_left - kw) / stride - (wide - 1);
    b.last_h = kh + stride * (high - 1);
    b.last_w = kw + stride * (wide - 1);
    a.map.per_tap_row = b.per_tap_row = wide > b.kw / stride ? one_more_tap : few_taps;
    a.map.taps = b.length = high * wide * b.out;
    const Part part((b.length + Tile::kDepth - 1) / Tile::kDepth, p, tiles);
    a.map.first_tap = b.first_depth = int(part.begin) * Tile::kDepth;
    b.first = p.n;
    steps = int(part.end - part.begin);
  }
  DEEM_DEVICE int64_t row(int i) const {
    const Map<T>& m = a.map;
    const uint32_t p = uint32_t(m.first + i), image = m.per_image.quotient(p), rest = p - image * m.per_image.d;
    const uint32_t u = m.per_row.quotient(rest);
    const int ih = residue_h + int(u) * stride, iw = residue_w + int(rest - u * m.per_row.d) * stride;
    return i < m.pixels && ih < h && iw < w ? ((m.first_image + image) * h + ih) * w + iw : -1;
  }
};

template <class T>
struct Weights {
  using Type = T;
  static constexpr bool kFewColumns = false;
  Columns<T> a;       // dy
  TapsByPixels<T> b;  // x
  Output<T> out;
  Tiles tiles;
  int steps = 0;

  template <class Tile>
  DEEM_DEVICE void start(const Place& p) {
    const Part part((a.rows + Tile::kDepth - 1) / Tile::kDepth, p, tiles);
    const int64_t pixel = part.begin * Tile::kDepth, count = (part.end - part.begin) * Tile::kDepth;
    b.map.start(pixel < a.rows ? pixel : 0, count);
    a.data += pixel * a.lines;
    a.rows = count < a.rows - pixel ? count : a.rows - pixel;
    a.first = int(p.m);
    b.map.first_tap = p.n;
    steps = int(part.end - part.begin);
  }
  DEEM_DEVICE int64_t row(int i) const { return a.first + i < a.lines ? a.first + i : -1; }
};

}  // namespace deem::cuda::conv
