// Denoising UNet of Stable Diffusion (diffusers' UNet2DConditionModel, its names) for any number of blocks.
// sample [N, h, w, C], timesteps [N] i64, context [N, T, D].
#pragma once
#include "core/graph.h"
#include "models/mmfs_net.h"
#include "models/resnet.h"
#include "models/sampler.h"

namespace deem {

struct UnetConfig {
  int64_t in_channels, out_channels, layers_per_block, cross_attention_dim, norm_num_groups;
  std::vector<int64_t> block_out_channels;
  std::vector<int64_t> heads;              // per block; files call it attention_head_dim
  std::vector<bool> down_cross, up_cross;  // which blocks attend to the context
  bool use_linear_projection;
  double norm_eps;

  static UnetConfig read(const Config& c);
  std::vector<int64_t> residual_widths() const;  // channels of what the way down hands to the way up, in order
};

// What MMFSNet adds: maps [N, K, h, w, D] per level, mask [N, K].
struct MmfsInputs {
  const MmfsNet* net;
  Tensors maps;
  Tensor mask;
};

struct Unet {
  struct Attention {
    Linear to_q, to_k, to_v, to_out;
    int64_t heads;
    Attention(const Scope& s, int64_t width, int64_t context_width, int64_t heads);
    // residual + what attention makes of x
    Tensor added_to(const Tensor& residual, const Tensor& x, const Tensor& context) const;
  };
  // Self attention, cross attention and a gated feed-forward over the positions of a map, with a residual around all.
  struct Transformer {
    GroupNorm norm;
    Tensor proj_in_weight, proj_in_bias, proj_out_weight, proj_out_bias;
    LayerNorm norm1, norm2, norm3;
    Attention attn1, attn2;
    Linear ff_in, ff_out;
    Transformer(const Scope& s, int64_t width, int64_t heads, const UnetConfig& c);
    Tensor operator()(const Tensor& x, const Tensor& context) const;
  };
  struct Block {
    std::vector<ResnetBlock> resnets;
    std::vector<Transformer> attentions;  // empty, or one a resnet
    std::optional<Conv2d> resample;
  };

  UnetConfig config;
  Conv2d conv_in, conv_out;
  Linear time1, time2;
  std::vector<Block> down, up;
  Block mid;
  GroupNorm conv_norm_out;

  Unet(const Scope& s, const UnetConfig& c);
  // checkpoint: recompute each block in the backward pass.
  Tensor forward(const Tensor& sample, const Tensor& timesteps, const Tensor& context,
                 const std::optional<MmfsInputs>& mmfs = {}, bool checkpoint = false) const;
  // The same in two halves: what is looked up of the timesteps [N] (f32, where they lie), and what is computed with it.
  Tensor look_up(const Tensor& timesteps) const { return timestep_embedding(timesteps, config.block_out_channels[0]); }
  Tensor denoise(const Tensor& sample, const Tensor& looked_up, const Tensor& context,
                 const std::optional<MmfsInputs>& mmfs, bool checkpoint) const;
};

// What one picture is painted from.
struct Conditions {
  Tensor context;                  // [N, T, D]
  MaybeTensor negative;            // [1 or N, T, D]: where classifier-free guidance starts from
  std::optional<MmfsInputs> mmfs;  // of N images
  double guidance = 1;             // other than 1: both halves run as one batch, negative first
};

// A denoiser under conditions, both halves of guidance in one batch.
class Guided {
 public:
  Guided(const Unet& unet, const Conditions& conditions);
  // What the denoiser says of x [N, h, w, C]; no gradients. On a device that records graphs, the second call for one shape records what
  // it does, and later ones replay that.
  Tensor operator()(const Tensor& x, double timestep);

 private:
  Tensor guide(const Tensor& y) const;

  // A pass of the denoiser: what it reads, and what it leaves.
  struct Recorded {
    Tensor x, looked_up, y;
    std::unique_ptr<DeviceGraph> graph;
  };
  const Unet& unet_;
  Tensor context_;
  std::optional<MmfsInputs> mmfs_;
  double guidance_;
  bool both_, records_ = true;
  std::optional<Shape> shape_;  // of the last call
  DType dtype_ = DType::f32;
  Recorded recorded_;
};

}  // namespace deem
