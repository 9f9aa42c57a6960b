// ConvNeXt trunk with timm's names and DEEM's adapters (model.md, step 1). B images, strides 4, 8, 16, 32 (for patches of 4).
#pragma once
#include <array>

#include "models/module.h"

namespace deem {

struct ConvNextConfig {
  std::vector<int64_t> depths, dims;  // four stages
  int64_t embed_dim;                  // of open_clip's projection, which is stored and never run
  int64_t adapter_dim;                // D
  int64_t patch_size;                 // side of the stem's patches
  double drop_path_rate;              // of the last block; the others' rise linearly to it
  double layer_scale_init;

  static ConvNextConfig read(const Config& c);
};

struct ConvNextOutput {
  Tensor tokens;               // [B, 1 + h * w, D]: cls, then the third map row-major
  std::array<Tensor, 4> maps;  // [B, h, w, D]
  Tensor pooled;               // [B, C]: mean over positions, normalised; what adapter_cls reads
};

struct ConvNext {
  struct Block {
    Tensor gamma;
    Conv2d conv_dw;
    LayerNorm norm;
    Linear fc1, fc2;
    double drop_path;
    Block(const Scope& s, int64_t width, const ConvNextConfig& c, double drop_path);
    Tensor operator()(const Tensor& x, Mode mode) const;
  };
  struct Stage {
    std::optional<LayerNorm> norm;  // with `down`, absent in the first stage
    std::optional<Conv2d> down;
    std::vector<Block> blocks;
  };

  ConvNextConfig config;
  std::array<Linear, 4> adapters;
  Linear adapter_cls;
  Conv2d stem;
  LayerNorm stem_norm, head_norm;
  std::vector<Stage> stages;

  ConvNext(const Scope& s, const ConvNextConfig& c);
  // pixels [B, H, W, 3], normalised. checkpoint: recompute each stage in the backward pass.
  ConvNextOutput forward(const Tensor& pixels, Mode mode = {}, bool checkpoint = false) const;
};

}  // namespace deem
