// Every operation of the engine: one declaration each, its formula in a line. Unless said otherwise operations take and
// return f32, bf16 or f16 (accumulating in f32), accept strided views, and have gradients for all floating inputs.
// Floating operands lie on one device, where the result is; others throw DeviceError. Integer operands whose values are checked or
// planned by (ids, labels, positions, indices, keep, relative) belong on the host, whatever the device of the others; masks and codes
// (u8) may lie on either.
// B batch, T tokens, H heads, D head size, C channels, [N, H, W, C] feature maps. Shape, dtype and range mistakes throw.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/autograd.h"
#include "core/tensor.h"

namespace deem {

// ---- elementwise.cpp: value and derivative on one row of a table; binary operations broadcast -------------------------
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
Tensor add_scalar(const Tensor& x, double s);
Tensor mul_scalar(const Tensor& x, double s);
Tensor neg(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor square(const Tensor& x);
Tensor abs(const Tensor& x);  // gradient 0 at 0
Tensor tanh(const Tensor& x);
Tensor sigmoid(const Tensor& x);
Tensor relu(const Tensor& x);
Tensor silu(const Tensor& x);                                           // x * sigmoid(x)
Tensor gelu(const Tensor& x);                                           // x * Phi(x), exact (erf)
Tensor gelu_tanh(const Tensor& x);                                      // the tanh approximation
Tensor quick_gelu(const Tensor& x);                                     // x * sigmoid(1.702 x)
Tensor clamp(const Tensor& x, double low, double high);                 // gradient passes inside [low, high]
Tensor where(const Tensor& mask_u8, const Tensor& a, const Tensor& b);  // mask != 0 ? a : b, all three broadcast
Tensor greater(const Tensor& x, double limit);  // greater.cpp: x > limit as u8; a mask, so never recorded
Tensor cast(const Tensor& x, DType to);         // any dtype to any; differentiable between floating ones
void add_(const Tensor& sum, const Tensor& x);  // in place, same shape and dtype, sum contiguous; never recorded

// ---- gated.cpp: the two halves of the last axis ------------------------------------------------------------------------
Tensor geglu(const Tensor& x);   // x[..., :n] * gelu(x[..., n:])
Tensor swiglu(const Tensor& x);  // silu(x[..., :n]) * x[..., n:]

// ---- reduce.cpp --------------------------------------------------------------------------------------------------------
Tensor sum(const Tensor& x, const std::vector<int64_t>& axes = {}, bool keep_dims = false);  // no axes: all
Tensor mean(const Tensor& x, const std::vector<int64_t>& axes = {}, bool keep_dims = false);
Tensor sum_to(const Tensor& x, const Shape& shape);      // undoes broadcasting from `shape`
Tensor mse_loss(const Tensor& x, const Tensor& target);  // mean((x - target)^2), scalar f32
Tensor argmax(const Tensor& x);                          // last axis -> i64, first of equals; no gradient
double norm(const Tensor& x);                            // L2, accumulated in double; never recorded

// ---- matmul.cpp --------------------------------------------------------------------------------------------------------
enum class Activation { none, relu, gelu, gelu_tanh, silu, quick_gelu };
Activation activation_from_name(const std::string& name);  // throws ConfigError
// a [..., M, K] (or [..., K, M] if transpose_a) times b [..., K, N] (or [..., N, K]); leading axes equal, or b 2-D.
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a = false, bool transpose_b = false);
// x [..., I], weight [O, I], bias [O] -> act(x weight^T + bias) [..., O]
Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias = {}, Activation act = Activation::none);
// residual [..., O] + linear(x, weight, bias) * scale [O], or times 1. The bits of these operations one after the other, in one where no gradient is
// wanted and the kernel can.
Tensor add_linear(const Tensor& residual, const Tensor& x, const Tensor& weight, const MaybeTensor& bias = {},
                  const MaybeTensor& scale = {});
// Keeps a linear weight [O, I] of the CPU a second time, in the order in which products of many rows read it, until its values are written.
// Whether it is kept: only where that is faster on this machine.
bool prepack(const Tensor& weight);

// ---- quantized_linear.cpp: a weight of 8 or 4 bits a number, in groups of 32, 64 or 128 along its columns --------------
// weight [O, I] -> u8 [O, row bytes]: codes, f16 scales, and f16 offsets unless symmetric. Throws ValueError for what is not finite.
Tensor quantize(const Tensor& weight, int64_t bits, int64_t group, bool symmetric);
Tensor dequantize(const Tensor& packed, int64_t cols, int64_t bits, int64_t group, bool symmetric);  // f32 [O, cols]
// x [..., I] times the packed weight, + bias -> [..., O]; gradients of x and bias
Tensor quantized_linear(const Tensor& x, const Tensor& packed, int64_t bits, int64_t group, bool symmetric,
                        const MaybeTensor& bias = {});
Tensor quantized_linear(const Tensor& x, const QuantizedWeight& weight, const MaybeTensor& bias);

// ---- conv.cpp ----------------------------------------------------------------------------------------------------------
struct Conv2dOptions {
  int64_t stride = 1;
  int64_t pad_left = 0, pad_right = 0, pad_top = 0, pad_bottom = 0;
  int64_t groups = 1;  // 1, or the number of channels (depthwise)
};
// x [N, H, W, I], weight [O, KH, KW, I / groups], bias [O] -> [N, OH, OW, O]
Tensor conv2d(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const Conv2dOptions& options = {});

// ---- layer_norm.cpp rms_norm.cpp group_norm.cpp ------------------------------------------------------------------------
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);  // last axis
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);                        // last axis
// x [N, H, W, C] or [N, T, C]; statistics over the positions and channels of a group; silu(y) if asked.
Tensor group_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups, double eps,
                  bool silu = false);

// ---- attention.cpp -----------------------------------------------------------------------------------------------------
struct AttentionOptions {
  double scale = 0;     // 0: 1 / sqrt(D)
  bool causal = false;  // the last Tq of the Tk keys are the queries' own: query i sees keys 0..Tk - Tq + i
};
// q [B, Tq, H, D], k and v [B, Tk, H, D] (Hkv heads may divide H: grouped-query), keep [B, Tk] u8 or i64, 0 on padded
// keys -> [B, Tq, H, D]. A query that sees no key gets the plain mean of all Tk values, as the published code does.
// q's batch may be 1 (learned queries): it is broadcast. Scores are never stored whole.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& keep = {},
                 const AttentionOptions& options = {});
// The same for layers that share what their queries see: a plan, i32 [B or 1, 1 + Tk + Tq], of keep [B, Tk] or none, on `device`.
Tensor attention_plan(const MaybeTensor& keep, int64_t queries, int64_t keys, bool causal, Device device);
Tensor planned_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& plan, double scale = 0);

// ---- rope.cpp ----------------------------------------------------------------------------------------------------------
// x [B, T, H, D], positions [B, T] i64; element i is rotated with i + D/2 by position * base^(-2i/D).
Tensor rope(const Tensor& x, const Tensor& positions, double base = 10000);
// The same for layers that share positions: a table f32 [B or 1, T, 2, D / 2] on `device`.
Tensor rope_table(const Tensor& positions, int64_t head_size, double base, Device device);
Tensor rope_by(const Tensor& x, const Tensor& table);

// ---- softmax.cpp (last axis), loss.cpp ---------------------------------------------------------------------------------
Tensor softmax(const Tensor& x);
Tensor log_softmax(const Tensor& x);
// logits [R, K], labels [R] i64 in 0..K-1 or ignore_index -> mean over kept rows, scalar f32; 0 where none is kept.
Tensor cross_entropy(const Tensor& logits, const Tensor& labels, int64_t ignore_index = -100);

// ---- embedding.cpp -----------------------------------------------------------------------------------------------------
Tensor embedding(const Tensor& table, const Tensor& ids);  // table [V, C], ids i64 [...] -> [..., C]
// ids [B, T]; rows of the table, ids == image_token replaced by the rows of image_embeds [..., C] in reading order (their
// number must match), soi_vector [1, C] added where ids == soi_token.
Tensor embed_interleaved(const Tensor& ids, const Tensor& table, const Tensor& image_embeds, const Tensor& soi_vector,
                         int64_t image_token, int64_t soi_token);

// ---- deform_attn.cpp ---------------------------------------------------------------------------------------------------
using LevelShapes = std::vector<std::pair<int64_t, int64_t>>;  // (height, width) of each level
// Multi-scale deformable attention (Zhu et al., Deformable DETR): value [B, S, H, D], locations [B, Q, H, L, P, 2] (x, y) in
// 0..1, weights [B, Q, H, L, P] -> [B, Q, H * D]. Bilinear, zero outside, align_corners = false.
Tensor ms_deform_attn(const Tensor& value, const LevelShapes& shapes, const Tensor& locations, const Tensor& weights);

// ---- mmfs_attention.cpp: the sampling half of MMFS, fused (model.md, step 6) --------------------------------------------
struct MmfsOptions {
  int64_t heads, points;
  LevelShapes level_shapes;          // of one image
  std::vector<double> scale_ratios;  // per level: offsets are multiplied by it
};
// value [B, N, S, H * D] (N images, S positions of all levels); offsets [B, Q, H * P * 2] and logits [B, Q, H * L * (P + 1)]
// are the query's own part, offset_table [M, H * P * 2] and logit_table [M, H * L * (P + 1)] the part of each relative image
// index; relative [B, N, Q] i64 in 0..M-1, 0 hides the image; reference [Q or 1, 2] (x, y); ignore_token [H * D].
// One softmax over N * L * (P + 1) logits per query and head; the last of each level is the ignore slot with logit
// -log(N * L); hidden images get -10000. -> sampled values + ignore_token * ignored weight, [B, Q, H * D].
Tensor mmfs_attention(const Tensor& value, const Tensor& offsets, const Tensor& offset_table, const Tensor& logits,
                      const Tensor& logit_table, const Tensor& relative, const Tensor& reference,
                      const Tensor& ignore_token, const MmfsOptions& options);

// ---- resample.cpp ------------------------------------------------------------------------------------------------------
// table [S*S (+1), C] -> [T*T (+1), C]; bicubic A = -0.75, align_corners = false, clamped edges; a leading cls row (the count
// is not a square) is copied. target counts rows, the cls row too.
Tensor resample_table(const Tensor& table, int64_t target);
Tensor resample_grid(const Tensor& table, int64_t height, int64_t width);  // the same to [height * width (+1), C]
Tensor resize_bilinear(const Tensor& x, int64_t height, int64_t width);    // [N, H, W, C], no antialias; no gradient
Tensor resize_nearest(const Tensor& x, int64_t height, int64_t width);     // [N, H, W, C], source = floor(i * in / out)

// ---- tables.cpp: position tables, f32, no inputs that want gradients; without a tensor to go by they are on the host ------
Tensor timestep_embedding(const Tensor& t, int64_t dim);     // t [N] i64 or float -> [N, dim], cosines first
Tensor sincos_1d(int64_t dim, int64_t count);                // [count, dim], sines first
Tensor sincos_2d(int64_t dim, int64_t side, bool with_cls);  // [side * side (+1), dim], row half then column half

// ---- view.cpp ----------------------------------------------------------------------------------------------------------
Tensor reshape(const Tensor& x, const Shape& shape);                      // one size may be -1; copies only if it must
Tensor permute(const Tensor& x, const std::vector<int64_t>& axes);        // view
Tensor slice(const Tensor& x, int64_t axis, int64_t begin, int64_t end);  // view; negative counts from the end
Tensor broadcast_to(const Tensor& x, const Shape& shape);                 // view
Tensor cat(const Tensors& parts, int64_t axis);
Tensor stack(const Tensors& parts, int64_t axis);
Tensor pad_rows(const Tensor& x, int64_t rows);            // zero rows appended on axis 0
Tensor gather_rows(const Tensor& x, const Tensor& index);  // axis 0; index i64 [...], -1 gives a zero row
Tensor contiguous(const Tensor& x);                        // itself, or a recorded copy
Tensor to_device(const Tensor& x, Device device);          // itself, or a recorded copy there

// ---- random.cpp: see core/rng.h ----------------------------------------------------------------------------------------
Tensor randn(const Shape& shape, int64_t seed, int64_t stream, Device device = Device::cpu);  // normal
Tensor rand(const Shape& shape, int64_t seed, int64_t stream, Device device = Device::cpu);   // [0, 1)
Tensor randint(const Shape& shape, int64_t low, int64_t high, int64_t seed,
               int64_t stream);               // i64 in [low, high), on the host
Tensor dropout(const Tensor& x, double p);    // inverted; takes one stream of the RngScope; identity where p == 0
Tensor drop_path(const Tensor& x, double p);  // stochastic depth: drops whole rows of axis 0

}  // namespace deem
