// MMFS, multi-image multi-scale deformable attention (model.md, step 6): every query samples the maps of the images it may
// see. B rows, Q queries, N images, S positions of all levels of an image, C channels.
#pragma once
#include "models/module.h"

namespace deem {

struct MmfsConfig {
  int64_t d_query, d_value, d_out, value_width, heads, points;
  std::vector<int64_t> level_sides;  // their number is the number of levels
  double base_side;                  // offsets of a level are scaled by side / base_side
  int64_t max_images;                // rows of the relative position table; one less image may be visible
  bool trains_ignore_token;

  static MmfsConfig read(const Config& c);  // of an MMFS that stands alone
};

// mask [B, N], [B, Q, N] or [B, longer than Q, N] (its last row serves all), 0/1 of any dtype -> i64 [B, N, Q] on the host: visible images
// count 1 (nearest) upward, hidden ones are 0. Throws ValueError where more than max_images - 1 are visible.
Tensor relative_index(const Tensor& mask, int64_t queries, int64_t max_images);

struct Mmfs {
  MmfsConfig config;
  Tensor ignore_token;  // [1, 1, 1, value_width]; a buffer unless it trains
  Linear sampling_offsets, dynamic_offset_mask, attention_weights, value_proj, output_proj;
  Tensor query_relpos;  // [max_images, d_query]

  Mmfs(const Scope& s, const MmfsConfig& c);

  // query [B, Q, Cq], reference [Q or 1, 2] as (x, y) in 0..1, features [B, N, S, Cv], mask as above -> [B, Q, d_out]
  Tensor operator()(const Tensor& query, const Tensor& reference, const Tensor& features, const LevelShapes& shapes,
                    const Tensor& mask) const;
  // The same in two halves, for those who keep the projected values or share the index among layers.
  Tensor project(const Tensor& features) const;  // [B, N, S, value_width]
  Tensor attend(const Tensor& query, const Tensor& reference, const Tensor& value, const LevelShapes& shapes,
                const Tensor& relative) const;
};

}  // namespace deem
