#include "models/mmfs_net.h"

#include <algorithm>

namespace deem {

MmfsNetConfig MmfsNetConfig::read(const Config& c) {
  MmfsNetConfig r{c.positive("attn_dim"),       c.positive("heads"),       c.positive("points"),     c.positive("grid"),
                  c.positive("max_images", 10), c.integers("value_sides"), c.integers("base_sides"), {}};
  if (c.has("feature_dim")) r.feature_dim = c.positive("feature_dim");
  c.finish();
  check<ConfigError>(!r.value_sides.empty() && !r.base_sides.empty(), "config '", c.path(),
                     "': value_sides and base_sides must not be empty");
  for (auto* sides : {&r.value_sides, &r.base_sides})
    for (int64_t side : *sides)
      check<ConfigError>(side > 0, "config '", c.path(), "': sides must be positive but one is ", side);
  return r;
}

MmfsNet::Block::Block(const Scope& s, int64_t query_dim, int64_t feature_dim, const MmfsNetConfig& c, int64_t base_side)
    : query_norm(s / "query_norm", query_dim, 1e-6),
      feat_norm(s / "feat_norm", feature_dim, 1e-6),
      mmfs(s / "mmfs", MmfsConfig{.d_query = query_dim,
                                  .d_value = feature_dim,
                                  .d_out = query_dim,
                                  .value_width = c.attn_dim,
                                  .heads = c.heads,
                                  .points = c.points,
                                  .level_sides = c.value_sides,
                                  .base_side = double(base_side),
                                  .max_images = c.max_images,
                                  .trains_ignore_token = false}),
      pos_embed(s.buffer("pos_embed", {c.grid * c.grid, query_dim},
                         Init::from([=] { return sincos_2d(query_dim, c.grid, false); }))),
      conv(s / "conv", query_dim, query_dim, 1, Conv2dOptions{}, Init::zeros()) {}

// Centres of the pixels of an h x w map, (x, y) in 0..1, row-major.
static Tensor pixel_centres(int64_t h, int64_t w, DType dtype, Device device) {
  Tensor t = Tensor::empty({h * w, 2});
  float* p = t.data<float>();
  for (int64_t i = 0; i < h; i++)
    for (int64_t j = 0; j < w; j++) {
      *p++ = (float(j) + 0.5f) / float(w);
      *p++ = (float(i) + 0.5f) / float(h);
    }
  return cast(t, dtype).to(device);
}

Tensor MmfsNet::Block::operator()(const Tensor& x, const Tensor& features, const LevelShapes& shapes,
                                  const Tensor& mask) const {
  int64_t n = x.size(0), h = x.size(1), w = x.size(2), c = x.size(3);
  Tensor query = add(query_norm(reshape(x, {n, h * w, c})), resample_grid(pos_embed, h, w));
  Tensor y = mmfs(query, pixel_centres(h, w, x.dtype(), x.device()), feat_norm(features), shapes, mask);
  return conv(reshape(y, x.shape()));
}

MmfsNet::MmfsNet(const Scope& s, const MmfsNetConfig& c, const std::vector<int64_t>& residual_widths,
                 int64_t feature_dim) {
  for (size_t i = 0; i < residual_widths.size(); i++)
    down.emplace_back(s / "mmfs_down_blocks" / int64_t(i), residual_widths[i], feature_dim, c,
                      c.base_sides[std::min(i / 3, c.base_sides.size() - 1)]);
  mid = std::make_unique<Block>(s / "mmfs_mid_block", residual_widths.back(), feature_dim, c, c.base_sides.back());
}

void MmfsNet::apply(Tensor& middle, Tensors& residuals, const Tensors& maps, const Tensor& mask) const {
  check<ShapeError>(residuals.size() == down.size(), "[mmfs_net] there are ", down.size(), " blocks but ",
                    residuals.size(), " residuals");
  LevelShapes shapes;
  Tensors flat;
  for (const Tensor& m : maps) {
    check<ShapeError>(m.ndim() == 5 && m.size(0) == middle.size(0), "[mmfs_net] maps must be [", middle.size(0),
                      ", K, h, w, D] but one has shape ", m.shape());
    shapes.push_back({m.size(2), m.size(3)});
    flat.push_back(reshape(m, {m.size(0), m.size(1), m.size(2) * m.size(3), m.size(4)}));
  }
  Tensor features = cat(flat, 2);
  for (size_t i = 0; i < down.size(); i++)
    residuals[i] = add(residuals[i], down[i](residuals[i], features, shapes, mask));
  middle = add(middle, (*mid)(middle, features, shapes, mask));
}

}  // namespace deem
