// The residual block that UNet and VAE share: norm, silu, conv, twice, plus the input (through a 1x1 convolution where the
// channels change). [N, H, W, C].
#pragma once
#include "models/module.h"

namespace deem {

struct ResnetBlock {
  GroupNorm norm1, norm2;
  Conv2d conv1, conv2;
  std::optional<Linear> time_emb_proj;  // UNet only
  std::optional<Conv2d> conv_shortcut;

  // time_width 0: no time embedding. gain: fresh convolutions are Init::scaled by it, the last by a tenth of it; without it
  // they have the default of Conv2d.
  ResnetBlock(const Scope& s, int64_t in, int64_t out, int64_t time_width, int64_t groups, double eps,
              std::optional<double> gain = {});
  // time: silu of the time embedding, [N, time_width]
  Tensor operator()(const Tensor& x, const Tensor& time = {}) const;
};

}  // namespace deem
