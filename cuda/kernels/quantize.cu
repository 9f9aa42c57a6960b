// Weights in few bits: floats to codes and back (ops/quantized_linear.h says how they lie).
#include "cuda/reduce.cuh"
#include "cuda/slot.h"
#include "cuda/vec.cuh"
#include "ops/quantized_linear.h"

namespace deem::cuda {

namespace {

constexpr int kThreads = 128;

// The format's sizes, worked out on the host.
struct Layout {
  int64_t cols, code_bytes, row_bytes, groups;
  int bits, group, shift, zero;  // shift: log2 of a group
  bool symmetric;
  explicit Layout(const QuantFormat& f)
      : cols(f.cols),
        code_bytes(f.code_bytes()),
        row_bytes(f.row_bytes()),
        groups(f.groups()),
        bits(int(f.bits)),
        group(int(f.group)),
        shift(f.group == 32   ? 5
              : f.group == 64 ? 6
                              : 7),
        zero(int(f.zero())),
        symmetric(f.symmetric) {}
};

DEEM_DEVICE bool is_finite(float v) { return v - v == 0; }
DEEM_DEVICE float half_value(unsigned short bits) { return __half2float(__ushort_as_half(bits)); }

// The f16 nearest to v among those as far from zero or farther; the largest one that is not above v.
DEEM_DEVICE unsigned short away_from_zero(float v) {
  unsigned short h = __half_as_ushort(__float2half_rn(v));
  if (fabsf(half_value(h)) < fabsf(v)) h++;
  return h;
}
DEEM_DEVICE unsigned short not_above(float v) {
  unsigned short h = __half_as_ushort(__float2half_rn(v));
  const float value = half_value(h);
  if (!(value > v)) return h;
  if (value > 0) return static_cast<unsigned short>(h - 1);
  return static_cast<unsigned short>(v < 0 && h == 0 ? 0x8001 : h + 1);
}

// A block makes a row, a warp one group after another, 32 numbers at a time.
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const float* weight, uint8_t* packed, uint8_t* finite, Layout f) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t r = blockIdx.x;
  const float* w = weight + r * f.cols;
  uint8_t* row = packed + r * f.row_bytes;
  unsigned short* scales = reinterpret_cast<unsigned short*>(row + f.code_bytes);
  const int highest = (1 << f.bits) - 1, lowest = f.symmetric && f.bits == 8 ? 1 : 0;
  const int pieces = f.group / 32;
  const int64_t all_groups = (f.code_bytes * 8 / f.bits + f.group - 1) / f.group;  // with those of padding alone
  float bad = 0;
  for (int64_t g = warp; g < all_groups; g += kThreads / 32) {
    float values[4], low = INFINITY, high = -INFINITY;
    bool whole = true;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t c = g * f.group + i * 32 + lane;
      values[i] = 0;
      if (i >= pieces || c >= f.cols) continue;
      values[i] = w[c];
      whole = whole && is_finite(values[i]);
      low = fminf(low, values[i]);
      high = fmaxf(high, values[i]);
    }
    const bool group_whole = __all_sync(0xffffffffu, whole);
    low = -warp_max(-low);
    high = warp_max(high);
    float scale = 0, offset = 0;
    if (g < f.groups && group_whole) {
      unsigned short bits;
      if (f.symmetric) {
        const float farthest = -low > high ? low : high;
        bits = away_from_zero(f.bits == 8 ? fabsf(farthest) / 127.0f : farthest / -8.0f);
      } else {
        const unsigned short below = not_above(low);
        offset = half_value(below);
        bits = away_from_zero((high - offset) / float(highest));
        if (lane == 0) scales[f.groups + g] = below;
      }
      scale = half_value(bits);
      if (lane == 0) scales[g] = bits;
    }
    if (!group_whole || !is_finite(scale) || !is_finite(offset)) bad = 1;
    const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i >= pieces) break;
      const int64_t c = g * f.group + i * 32 + lane;
      int code = f.zero;  // of columns that are not there
      if (c < f.cols) {
        const float q = floorf(fmaf(values[i] - offset, inverse, 0.5f)) + float(f.zero);
        code = int(fminf(fmaxf(q, float(lowest)), float(highest)));
      }
      if (f.bits == 8) {
        if (c < f.code_bytes) row[c] = uint8_t(code);
      } else {
        const int upper = __shfl_down_sync(0xffffffffu, code, 16);
        const int64_t byte = (c - lane) / 2 + lane;
        if (lane < 16 && byte < f.code_bytes) row[byte] = uint8_t(code | upper << 4);
      }
    }
  }
  bad = block_max<kThreads>(bad);
  if (threadIdx.x == 0) finite[r] = bad == 0;
}

// Four numbers a thread. (code - zero) * scale is exact, also as code * scale - zero * scale: 8 bits times the 11 of an f16.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const uint8_t* packed, T* out, int64_t first_row, int64_t rows, int64_t first_col, int64_t cols,
                      Layout f, bool vector) {
  const int64_t quads = (cols + 3) / 4, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * quads) return;
  const int64_t r = i / quads, c = i % quads * 4, at = first_col + c;
  const uint8_t* row = packed + (first_row + r) * f.row_bytes;
  const unsigned short* scales = reinterpret_cast<const unsigned short*>(row + f.code_bytes);
  const float scale = half_value(scales[at >> f.shift]);
  const float offset = f.symmetric ? -float(f.zero) * scale : half_value(scales[f.groups + (at >> f.shift)]);
  const uint8_t* codes = f.bits == 8 ? row + at : row + at / 32 * 16 + at % 16;
  const int shift = f.bits == 4 && at % 32 >= 16 ? 4 : 0, mask = f.bits == 8 ? 255 : 15;
  Vec<T, 4> result;
#pragma unroll
  for (int e = 0; e < 4; e++) result.v[e] = from_float<T>(fmaf(float(codes[e] >> shift & mask), scale, offset));
  T* to = out + r * cols + c;
  if (vector) {
    store_vec(to, result);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (c + e < cols) to[e] = result.v[e];
  }
}

void quantize(const QuantizeArgs& a) {
  if (a.rows == 0) return;
  DEEM_LAUNCH(quantize_kernel, dim3(unsigned(a.rows)), dim3(kThreads), 0, stream(), a.weight, a.packed, a.finite,
              Layout(a.format));
}

void dequantize(const DequantizeArgs& a) {
  const int64_t threads = a.rows * ((a.cols + 3) / 4);
  if (threads == 0) return;
  const bool vector = a.cols % 4 == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  dispatch(a.dtype, "dequantize", [&]<class T>(T) {
    DEEM_LAUNCH(dequantize_kernel<T>, dim3(unsigned((threads + kThreads - 1) / kThreads)), dim3(kThreads), 0, stream(),
                a.packed, static_cast<T*>(a.out), a.row, a.rows, a.col, a.cols, Layout(a.format), vector);
  });
}

}  // namespace

DEEM_CUDA_KERNEL("quantize", quantize);
DEEM_CUDA_KERNEL("dequantize", dequantize);

}  // namespace deem::cuda
