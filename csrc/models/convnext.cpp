#include "models/convnext.h"

#include <cmath>

namespace deem {

// Liu et al., "A ConvNet for the 2020s": weights start at N(0, 0.02^2), biases at 0.
static const Init kWeight = Init::normal(0.02);
static Linear small_linear(const Scope& s, int64_t in, int64_t out, bool bias = true) {
  return Linear(s, in, out, bias, kWeight, Init::zeros());
}

ConvNextConfig ConvNextConfig::read(const Config& c) {
  ConvNextConfig r{c.integers("depths"),
                   c.integers("dims"),
                   c.positive("embed_dim"),
                   c.positive("adapter_dim"),
                   c.positive("patch_size", 4),
                   c.number("drop_path_rate", 0),
                   c.number("layer_scale_init", 1e-6)};
  c.finish();
  check<ConfigError>(r.depths.size() == 4 && r.dims.size() == 4, "config '", c.path(),
                     "': depths and dims must name four stages");
  for (int64_t d : r.dims) check<ConfigError>(d > 0, "config '", c.path(), ".dims' must be positive but holds ", d);
  for (int64_t d : r.depths) check<ConfigError>(d > 0, "config '", c.path(), ".depths' must be positive but holds ", d);
  check<ConfigError>(r.drop_path_rate >= 0 && r.drop_path_rate < 1, "config '", c.path(),
                     ".drop_path_rate' must be in [0, 1)");
  return r;
}

ConvNext::Block::Block(const Scope& s, int64_t width, const ConvNextConfig& c, double drop_path)
    : gamma(s.param("gamma", {width}, Init::constant(c.layer_scale_init))),
      conv_dw(s / "conv_dw", width, width, 7, Conv2dOptions{1, 3, 3, 3, 3, width}, kWeight),
      norm(s / "norm", width, 1e-6),
      fc1(small_linear(s / "mlp" / "fc1", width, 4 * width)),
      fc2(small_linear(s / "mlp" / "fc2", 4 * width, width)),
      drop_path(drop_path) {}

Tensor ConvNext::Block::operator()(const Tensor& x, Mode mode) const {
  const Tensor h = fc1(norm(conv_dw(x)), Activation::gelu);
  if (!mode.training || drop_path == 0) return fc2.added_to(x, h, gamma);
  return add(x, deem::drop_path(mul(fc2(h), gamma), drop_path));
}

static Conv2d patches(const Scope& s, int64_t in, int64_t out, int64_t side) {
  return Conv2d(s, in, out, side, Conv2dOptions{side, 0, 0, 0, 0, 1}, kWeight);
}

ConvNext::ConvNext(const Scope& root, const ConvNextConfig& c) : config(c) {
  Scope s = root / "vision_model", trunk = s / "visual" / "trunk";
  const auto& dims = c.dims;
  for (int i = 0; i < 4; i++)
    adapters[size_t(i)] = Linear(s / ("adapter_c" + std::to_string(i + 2)), dims[size_t(i)], c.adapter_dim);
  adapter_cls = Linear(s / "adapter_cls", dims[3], c.adapter_dim);
  stem = patches(trunk / "stem" / 0, 3, dims[0], c.patch_size);
  stem_norm = LayerNorm(trunk / "stem" / 1, dims[0], 1e-6);
  int64_t blocks = 0, done = 0;
  for (int64_t d : c.depths) blocks += d;
  for (size_t i = 0; i < 4; i++) {
    Scope at = trunk / "stages" / int64_t(i);
    Stage stage;
    if (i > 0) {
      stage.norm = LayerNorm(at / "downsample" / 0, dims[i - 1], 1e-6);
      stage.down = patches(at / "downsample" / 1, dims[i - 1], dims[i], 2);
    }
    for (int64_t b = 0; b < c.depths[i]; b++, done++)
      stage.blocks.emplace_back(at / "blocks" / b, dims[i], c,
                                blocks > 1 ? c.drop_path_rate * double(done) / double(blocks - 1) : 0.0);
    stages.push_back(std::move(stage));
  }
  head_norm = LayerNorm(trunk / "head" / "norm", dims[3], 1e-6);
  // open_clip's projection is part of published files; DEEM keeps it and never runs it.
  small_linear(s / "visual" / "head" / "mlp" / "fc1", dims[3], 2 * c.embed_dim);
  small_linear(s / "visual" / "head" / "mlp" / "fc2", 2 * c.embed_dim, c.embed_dim, false);
}

ConvNextOutput ConvNext::forward(const Tensor& pixels, Mode mode, bool checkpointed) const {
  int64_t reach = 8 * config.patch_size;
  check<ShapeError>(pixels.ndim() == 4 && pixels.size(3) == 3, "[convnext] pixels must be [B, H, W, 3] but have shape ",
                    pixels.shape());
  check<ShapeError>(pixels.size(1) >= reach && pixels.size(2) >= reach, "[convnext] pictures need at least ", reach,
                    " x ", reach, " pixels but are ", pixels.size(1), " x ", pixels.size(2));
  ConvNextOutput out;
  Tensor x = stem_norm(stem(cast(pixels, stem.weight.dtype())));
  for (size_t i = 0; i < 4; i++) {
    auto run = [&stage = stages[i], mode](const Tensors& in) {
      Tensor y = in[0];
      if (stage.down) y = (*stage.down)((*stage.norm)(y));
      for (const Block& b : stage.blocks) y = b(y, mode);
      return y;
    };
    x = checkpointed ? checkpoint(run, {x}, stages[i].blocks[0].gamma.requires_grad()) : run({x});
    out.maps[i] = adapters[i](x);
  }
  out.pooled = head_norm(mean(x, {1, 2}));
  int64_t b = pixels.size(0), d = config.adapter_dim;
  const Tensor& grid = out.maps[2];
  out.tokens =
      cat({reshape(adapter_cls(out.pooled), {b, 1, d}), reshape(grid, {b, grid.size(1) * grid.size(2), d})}, 1);
  return out;
}

namespace {

struct ConvNextModel : Model {
  ConvNext net;
  ConvNextModel(const Json& config, const BuildOptions& build)
      : Model(build), net(Scope(params), ConvNextConfig::read(Config(config, "convnext"))) {}

  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    if (method != "forward") unknown_method("convnext", method);
    Config o(options, "options");
    Mode mode{o.boolean("training", false)};
    bool checkpointed = o.boolean("checkpoint", false);
    o.finish();
    ConvNextOutput y = net.forward(input(inputs, "pixels"), mode, checkpointed);
    return {{"tokens", y.tokens}, {"c2", y.maps[0]}, {"c3", y.maps[1]},
            {"c4", y.maps[2]},    {"c5", y.maps[3]}, {"pooled", y.pooled}};
  }
};

std::unique_ptr<Model> make(const Json& config, const BuildOptions& build) {
  return std::make_unique<ConvNextModel>(config, build);
}
const RegisterModel r{"convnext", make};

}  // namespace

}  // namespace deem
