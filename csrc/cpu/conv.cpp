#include "ops/conv.h"

#include "cpu/depthwise.h"
#include "cpu/dnnl.h"
#include "cpu/gemm.h"
#include "cpu/im2col.h"
#include "cpu/wide.h"
#include "cpu/winograd.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"

namespace deem {

constinit Kernel<Im2colArgs> im2col_kernel{"im2col"};
constinit Kernel<Col2imArgs> col2im_kernel{"col2im"};
constinit Kernel<DepthwiseArgs> depthwise_kernel{"depthwise"};
constinit Kernel<WinogradArgs> winograd_kernel{"winograd"};
constinit Kernel<WinogradWeightsArgs> winograd_weights_kernel{"winograd_weights"};

static int64_t pixels(const ConvSizes& s) { return s.n * s.oh * s.ow; }
static int64_t patch(const ConvSizes& s) { return s.kh * s.kw * s.in; }

// ---- 3 x 3 by tiles (cpu/winograd.h) ------------------------------------------------------------------------------

// Side of the tiles of results, or 0 where there are too few channels or tiles of 2 x 2 pixels for their transformations to pay; `fewest_tiles`
// is for weights that do not stay in cache. Products are of `numbers`. Measured by `npm run bench -- conv`.
static int64_t tile_side(const ConvSizes& s, DType numbers, int64_t fewest_channels, int64_t fewest_tiles) {
  constexpr int64_t kFewestTiles = 64, kManyWeights = 1 << 18, kFewestLarge = 8;
  auto tiles = [&](int64_t side) { return s.n * ((s.oh + side - 1) / side) * ((s.ow + side - 1) / side); };
  const int64_t channels = s.in * s.out;
  const bool pays = s.groups == 1 && s.kh == 3 && s.kw == 3 && s.stride == 1 &&
                    s.in % winograd_channels(numbers) == 0 && s.out >= 16 &&
                    channels >= fewest_channels * fewest_channels &&
                    tiles(2) >= (channels > kManyWeights ? fewest_tiles : kFewestTiles);
  if (!pays) return 0;
  // Products of all points, of which large tiles waste more where they hang over the edge; less by a fifth pays.
  const int64_t small = 16 * tiles(2), large = 36 * tiles(4);
  return !multiplies_short(numbers) && tiles(4) >= kFewestLarge && 6 * large < 5 * small ? 4 : 2;
}

static bool winograd_forward(const ConvForwardArgs& a) {
  const int64_t side = tile_side(a.s, a.s.dtype, 32, 16);
  if (side > 0) winograd_kernel(Device::cpu, {a.s, side, false, a.x, a.weight, a.bias, a.y});
  return side > 0;
}

// A convolution of dy with the weights' taps in reverse; of stride 1.
static ConvSizes reversed(const ConvSizes& s) {
  ConvSizes back = s;
  back.h = s.oh, back.w = s.ow, back.oh = s.h, back.ow = s.w, back.in = s.out, back.out = s.in;
  back.pad_top = s.kh - 1 - s.pad_top, back.pad_left = s.kw - 1 - s.pad_left;
  return back;
}

static bool winograd_data(const ConvDataArgs& a) {
  const int64_t side = a.s.stride == 1 ? tile_side(reversed(a.s), a.s.dtype, 32, 16) : 0;
  if (side > 0) winograd_kernel(Device::cpu, {reversed(a.s), side, true, a.dy, a.weight, nullptr, a.dx});
  return side > 0;
}

// In f32, whatever the numbers are.
static bool winograd_weights(const ConvWeightsArgs& a) {
  const int64_t side = tile_side(a.s, DType::f32, 48, 192);
  if (side > 0) winograd_weights_kernel(Device::cpu, {a.s, side, a.x, a.dy, a.dweight});
  return side > 0;
}

// ---- products in f32 whose patches are packed from the picture (cpu/gemm.h) ---------------------------------------------

// Most of a tile would be empty in the gradient of the picture.
static bool few_channels(const ConvSizes& s) { return s.groups == 1 && s.in < 8; }
static bool packs(const ConvSizes& s) { return s.groups == 1 && !multiplies_short(s.dtype); }

static void packed(const ConvSizes& s, int64_t m, int64_t n, int64_t k, RowsOf rows, const PackSource& a,
                   ColumnsOf columns, const PackSource& b, const void* bias, void* c) {
  packed_gemm_kernel(Device::cpu, {.batch = 1,
                                   .m = m,
                                   .n = n,
                                   .k = k,
                                   .rows = rows,
                                   .a = a,
                                   .columns = columns,
                                   .b = b,
                                   .bias = bias,
                                   .c = c,
                                   .c_row_stride = n,
                                   .c_step = 0,
                                   .dtype = s.dtype,
                                   .c_dtype = s.dtype});
}

// Where a patch is a pixel, x is the matrix itself.
static bool pointwise(const ConvSizes& s) {
  return s.kh == 1 && s.kw == 1 && s.stride == 1 && s.h == s.oh && s.w == s.ow && s.pad_top == 0 && s.pad_left == 0;
}
static RowsOf rows_of(const ConvSizes& s) { return pointwise(s) ? RowsOf::lines : RowsOf::patches; }
static ColumnsOf columns_of(const ConvSizes& s) { return pointwise(s) ? ColumnsOf::across : ColumnsOf::patches; }
static PackSource picture(const void* x, const ConvSizes& s) { return {x, s.in, 0, &s}; }

static void packed_forward(const ConvForwardArgs& a) {
  const ConvSizes& s = a.s;
  packed(s, pixels(s), s.out, patch(s), rows_of(s), picture(a.x, s), ColumnsOf::lines, {a.weight, patch(s), 0, nullptr},
         a.bias, a.y);
}

// Of stride 1.
static void packed_data(const ConvDataArgs& a) {
  const ConvSizes& s = a.s;
  const ConvSizes back = reversed(s);
  packed(s, s.n * s.h * s.w, s.in, s.kh * s.kw * s.out, rows_of(back), picture(a.dy, back), ColumnsOf::taps,
         {a.weight, 0, 0, &s}, nullptr, a.dx);
}

static bool packed_weights(const ConvWeightsArgs& a) {
  const ConvSizes& s = a.s;
  if (!packs(s)) return false;
  packed(s, s.out, patch(s), pixels(s), RowsOf::across, {a.dy, s.out, 0, nullptr}, columns_of(s), picture(a.x, s),
         nullptr, a.dweight);
  return true;
}

// ---- products: of pixels that are their own patches, few pixels and large weights, a gradient to few channels (cpu/im2col.h) ----

// Where copying the weights would cost as much as a good part of the work; measured by `npm run bench -- conv`.
static bool few_pixels(const ConvSizes& s) {
  constexpr int64_t kMostPixels = 512, kManyWeights = 1 << 20;
  return s.groups == 1 && pixels(s) <= kMostPixels && patch(s) * s.out >= kManyWeights;
}
static bool is_product(const ConvSizes& s) { return few_pixels(s) || (s.groups == 1 && pointwise(s)); }

static GemmOperand dense(const void* data, int64_t rows, int64_t cols) { return {data, rows, cols, cols, 1, 0}; }
static GemmOperand transposed(const void* data, int64_t rows, int64_t cols) { return {data, cols, rows, 1, cols, 0}; }

static void product(const GemmOperand& a, const GemmOperand& b, const void* bias, void* c, DType dtype, DType c_dtype) {
  gemm_kernel(
      Device::cpu,
      {.batch = 1, .a = a, .b = b, .bias = bias, .c = c, .c_row_stride = b.cols, .dtype = dtype, .c_dtype = c_dtype});
}

// The patches of x: x itself, or a copy in scratch memory.
class Patches {
 public:
  Patches(const ConvSizes& s, const void* x) : data_(x) {
    if (pointwise(s)) return;
    copy_.take(pixels(s) * patch(s), s.dtype);
    im2col_kernel(Device::cpu, {s, x, copy_.data()});
    data_ = copy_.data();
  }
  const void* data() const { return data_; }

 private:
  const void* data_;
  Scratch copy_;
};

static void product_forward(const ConvForwardArgs& a) {
  const ConvSizes& s = a.s;
  const Patches col(s, a.x);
  product(dense(col.data(), pixels(s), patch(s)), transposed(a.weight, s.out, patch(s)), a.bias, a.y, s.dtype, s.dtype);
}

static void product_data(const ConvDataArgs& a) {
  const ConvSizes& s = a.s;
  if (pointwise(s))
    return product(dense(a.dy, pixels(s), s.out), dense(a.weight, s.out, s.in), nullptr, a.dx, s.dtype, s.dtype);
  Scratch col(pixels(s) * patch(s), DType::f32);
  product(dense(a.dy, pixels(s), s.out), dense(a.weight, s.out, patch(s)), nullptr, col.data(), s.dtype, DType::f32);
  col2im_kernel(Device::cpu, {s, col.floats(), a.dx});
}

// Many weights: oneDNN takes over a millisecond to plan their gradient for each new size.
static bool product_weights(const ConvWeightsArgs& a) {
  constexpr int64_t kManyWeights = 1 << 17;
  const ConvSizes& s = a.s;
  if (!is_product(s) && !(s.groups == 1 && patch(s) * s.out >= kManyWeights)) return false;
  const Patches col(s, a.x);
  product(transposed(a.dy, pixels(s), s.out), dense(col.data(), pixels(s), patch(s)), nullptr, a.dweight, s.dtype,
          s.dtype);
  return true;
}

// ---- each channel alone (cpu/depthwise.h) ------------------------------------------------------------------------------

// Few taps do not pay for the copy of the picture, nor strides, of which oneDNN reads less of it; both but where all its numbers would have to
// be widened for oneDNN. Strides beyond the kernel would copy what no tap reads.
static bool sums_channels(const ConvSizes& s) {
  constexpr int64_t kManyTaps = 25;
  const bool many = s.kh * s.kw >= kManyTaps && s.stride == 1;
  return s.groups > 1 && (many || !multiplies(s.dtype)) && s.stride <= s.kw;
}

// ---- the rest, and gradients of pictures through strides: oneDNN ----------------------

// An operand as f32: itself, or in scratch memory.
class Wide {
 public:
  Wide(const void* data, int64_t count, DType dtype) : data_(data) {
    if (!data || multiplies(dtype)) return;
    scratch_.take(count, DType::f32);
    cast_kernel(Device::cpu, {data, scratch_.data(), count, dtype, DType::f32});
    data_ = scratch_.data();
  }
  const void* data() const { return data_; }

 private:
  const void* data_;
  Scratch scratch_;
};

// A result computed in f32 and rounded when it goes out of scope, or written directly.
class WideResult {
 public:
  WideResult(void* data, int64_t count, DType dtype) : data_(data), count_(count), dtype_(dtype) {
    if (data && !multiplies(dtype)) scratch_.take(count, DType::f32);
  }
  ~WideResult() {
    if (scratch_.data()) cast_kernel(Device::cpu, {scratch_.data(), data_, count_, DType::f32, dtype_});
  }
  WideResult(const WideResult&) = delete;
  void* data() const { return scratch_.data() ? scratch_.data() : data_; }

 private:
  void* data_;
  int64_t count_;
  DType dtype_;
  Scratch scratch_;
};

static onednn::ConvShape shape_of(const ConvSizes& s) {
  return {s.n,          s.h,         s.w,       s.in,
          s.out,        s.kh,        s.kw,      s.oh,
          s.ow,         s.stride,    s.pad_top, s.pad_left,
          s.pad_bottom, s.pad_right, s.groups,  multiplies(s.dtype) ? s.dtype : DType::f32};
}
static int64_t count_x(const ConvSizes& s) { return s.n * s.h * s.w * s.in; }
static int64_t count_y(const ConvSizes& s) { return pixels(s) * s.out; }
static int64_t count_weight(const ConvSizes& s) { return patch(s) / s.groups * s.out; }

static void forward(const ConvForwardArgs& a) {
  const ConvSizes& s = a.s;
  if (sums_channels(s)) return depthwise_kernel(Device::cpu, {s, false, a.x, a.weight, a.bias, a.y});
  if (winograd_forward(a)) return;
  if (packs(s)) return packed_forward(a);
  if (is_product(s)) return product_forward(a);
  Wide x(a.x, count_x(s), s.dtype), weight(a.weight, count_weight(s), s.dtype), bias(a.bias, s.out, s.dtype);
  WideResult y(a.y, count_y(s), s.dtype);
  onednn::conv_forward(shape_of(s), x.data(), weight.data(), bias.data(), y.data());
}

static void data(const ConvDataArgs& a) {
  const ConvSizes& s = a.s;
  if (sums_channels(s) && s.stride == 1)
    return depthwise_kernel(Device::cpu, {reversed(s), true, a.dy, a.weight, nullptr, a.dx});
  if (winograd_data(a)) return;
  if (packs(s) && s.stride == 1 && !few_channels(s)) return packed_data(a);
  if (is_product(s) || (few_channels(s) && (packs(s) || s.stride == 1))) return product_data(a);
  Wide dy(a.dy, count_y(s), s.dtype), weight(a.weight, count_weight(s), s.dtype);
  WideResult dx(a.dx, count_x(s), s.dtype);
  onednn::conv_backward_data(shape_of(s), dy.data(), weight.data(), dx.data());
}

static void weights(const ConvWeightsArgs& a) {
  const ConvSizes& s = a.s;
  const bool ours = winograd_weights(a) || packed_weights(a) || product_weights(a);
  if (ours && a.dbias) column_sum_kernel(Device::cpu, {a.dy, a.dbias, pixels(s), s.out, s.dtype});
  if (ours) return;
  Wide x(a.x, count_x(s), s.dtype), dy(a.dy, count_y(s), s.dtype);
  WideResult dweight(a.dweight, count_weight(s), s.dtype), dbias(a.dbias, s.out, s.dtype);
  onednn::conv_backward_weights(shape_of(s), x.data(), dy.data(), dweight.data(), dbias.data());
}

static const Register r1{conv_forward_kernel, Device::cpu, forward};
static const Register r2{conv_data_kernel, Device::cpu, data};
static const Register r3{conv_weights_kernel, Device::cpu, weights};

}  // namespace deem
