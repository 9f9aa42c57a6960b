// MMFSNet: one MMFS block per residual of the UNet's way down and one for its middle, each ending in a 1x1 convolution that
// starts at zero (model.md, step 9). N images of the batch, K pictures each may look at.
#pragma once
#include "models/mmfs.h"

namespace deem {

struct MmfsNetConfig {
  int64_t attn_dim, heads, points, grid, max_images;
  std::vector<int64_t> value_sides, base_sides;
  std::optional<int64_t> feature_dim;  // of a UNet that stands alone; DEEM knows it

  static MmfsNetConfig read(const Config& c);
};

struct MmfsNet {
  struct Block {
    LayerNorm query_norm, feat_norm;
    Mmfs mmfs;
    Tensor pos_embed;  // [grid * grid, C], saved, never trained
    Conv2d conv;
    Block(const Scope& s, int64_t query_dim, int64_t feature_dim, const MmfsNetConfig& c, int64_t base_side);
    // x [N, h, w, C] of any sides: the position table is resampled to them, places in the pictures count in 0..1, and offsets are
    // fractions of the whole (pixels of the base sides) as at the size the model was trained at. [N, K, S, D], mask [N, K] -> what is added to x
    Tensor operator()(const Tensor& x, const Tensor& features, const LevelShapes& shapes, const Tensor& mask) const;
  };

  std::vector<Block> down;
  std::unique_ptr<Block> mid;

  // residual_widths: channels of the UNet's residuals in order; the middle has the last one's.
  MmfsNet(const Scope& s, const MmfsNetConfig& c, const std::vector<int64_t>& residual_widths, int64_t feature_dim);
  // maps: per level [N, K, h, w, D]. Adds to every residual and to the middle.
  void apply(Tensor& middle, Tensors& residuals, const Tensors& maps, const Tensor& mask) const;
};

}  // namespace deem
