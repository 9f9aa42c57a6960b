// Variational autoencoder of Stable Diffusion (diffusers' AutoencoderKL, its names). Images [N, H, W, 3] in -1..1, latents
// [N, H / f, W / f, C] with f = 2^(blocks - 1).
#pragma once
#include "models/resnet.h"

namespace deem {

struct VaeConfig {
  std::vector<int64_t> block_out_channels;
  int64_t in_channels, out_channels, layers_per_block, latent_channels, norm_num_groups;
  double scaling_factor;  // latents are multiplied by it before the denoiser sees them

  static VaeConfig read(const Config& c);
};

struct Vae {
  struct Attention {
    GroupNorm group_norm;
    Linear to_q, to_k, to_v, to_out;
    Attention(const Scope& s, int64_t channels, int64_t groups);
    Tensor operator()(const Tensor& x) const;
  };
  struct Mid {
    ResnetBlock first;
    Attention attention;
    ResnetBlock second;
    Mid(const Scope& s, int64_t channels, int64_t groups);
    Tensor operator()(const Tensor& x) const { return second(attention(first(x))); }
  };
  struct Block {
    std::vector<ResnetBlock> resnets;
    std::optional<Conv2d> resample;  // strided in the encoder, after doubling in the decoder
  };
  struct Half {
    Conv2d conv_in, conv_out;
    std::vector<Block> blocks;
    Mid mid;
    GroupNorm conv_norm_out;
    Half(const Scope& s, const VaeConfig& c, bool encoder);
  };

  VaeConfig config;
  Half encoder, decoder;
  Conv2d quant_conv, post_quant_conv;

  Vae(const Scope& s, const VaeConfig& c);
  std::pair<Tensor, Tensor> encode(const Tensor& image) const;  // mean and log variance (clamped to -30..20), unscaled
  // (mean + exp(logvar / 2) * eps) * scaling_factor
  Tensor sample_scaled(const Tensor& mean, const Tensor& logvar, const Tensor& eps) const;
  Tensor decode(const Tensor& latent) const;  // of scaled latents; not clamped
};

}  // namespace deem
