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

// Pictures in overlapping tiles, so that memory is bounded by that of one tile. Sizes in pixels, multiples of the VAE's factor.
struct Tiling {
  int64_t size, overlap;  // of a side; neighbours share `overlap` or a little more

  // keys tile_size (absent: none) and tile_overlap (default a quarter of the size)
  static std::optional<Tiling> read(const Config& c, int64_t factor);
};
using MaybeTiling = std::optional<Tiling>;

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
  int64_t factor() const {
    return int64_t(1) << (config.block_out_channels.size() - 1);
  }  // pixels along a latent's side
  // Mean and log variance (clamped to -30..20), unscaled. With tiles every picture is encoded alone, tile by tile, and neighbours
  // are blended linearly where they overlap; a tile has group statistics of its own, so the result differs a little from the whole.
  // What fits in a tile is not cut. Tiled results have no gradient. decode likewise.
  std::pair<Tensor, Tensor> encode(const Tensor& image, const MaybeTiling& tiling = {}) const;
  // (mean + exp(logvar / 2) * eps) * scaling_factor
  Tensor sample_scaled(const Tensor& mean, const Tensor& logvar, const Tensor& eps) const;
  Tensor decode(const Tensor& latent, const MaybeTiling& tiling = {}) const;  // of scaled latents; not clamped

 private:
  Tensor moments(const Tensor& image) const;  // [N, h, w, 2 C]
  Tensor pixels(const Tensor& latent) const;  // of unscaled latents
};

}  // namespace deem
