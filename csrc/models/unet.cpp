#include "models/unet.h"

#include <algorithm>

#include "core/engine.h"
#include "core/rng.h"

namespace deem {

static std::vector<bool> read_blocks(const Config& c, const char* key, const std::string& plain,
                                     const std::string& cross) {
  std::vector<bool> out;
  for (const std::string& type : c.strings(key)) {
    check<ConfigError>(type == plain || type == cross, "config '", c.path(), ".", key, "' may hold ", plain, " and ",
                       cross, " but holds '", type, "'");
    out.push_back(type == cross);
  }
  return out;
}

UnetConfig UnetConfig::read(const Config& c) {
  UnetConfig r;
  r.in_channels = c.positive("in_channels");
  r.out_channels = c.positive("out_channels");
  r.layers_per_block = c.positive("layers_per_block", 2);
  r.cross_attention_dim = c.positive("cross_attention_dim");
  r.norm_num_groups = c.positive("norm_num_groups", 32);
  r.block_out_channels = c.integers("block_out_channels");
  r.down_cross = read_blocks(c, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D");
  r.up_cross = read_blocks(c, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D");
  r.use_linear_projection = c.boolean("use_linear_projection", false);
  r.norm_eps = c.number("norm_eps", 1e-5);
  size_t blocks = r.block_out_channels.size();
  check<ConfigError>(blocks > 0 && r.down_cross.size() == blocks && r.up_cross.size() == blocks, "config '", c.path(),
                     "': block_out_channels, down_block_types and up_block_types must name the same number of blocks");
  r.heads = c.integers("attention_head_dim");
  check<ConfigError>(r.heads.size() == blocks, "config '", c.path(),
                     ".attention_head_dim' (the number of heads) must name ", blocks, " blocks");
  for (size_t i = 0; i < blocks; i++)
    check<ConfigError>(r.heads[i] > 0 && r.block_out_channels[i] > 0 && r.block_out_channels[i] % r.heads[i] == 0,
                       "config '", c.path(), "': ", r.block_out_channels[i], " channels cannot be split into ",
                       r.heads[i], " heads");
  check<ConfigError>(c.string("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn", "config '",
                     c.path(), ".mid_block_type' must be UNetMidBlock2DCrossAttn");
  check<ConfigError>(c.string("act_fn", "silu") == "silu", "config '", c.path(), ".act_fn' must be silu");
  check<ConfigError>(c.boolean("flip_sin_to_cos", true) && c.integer("freq_shift", 0) == 0, "config '", c.path(),
                     "': timestep embeddings have cosines first and no shift");
  for (auto [key, value] :
       {std::pair{"center_input_sample", false}, {"only_cross_attention", false}, {"dual_cross_attention", false}})
    check<ConfigError>(c.boolean(key, value) == value, "config '", c.path(), ".", key, "' must be ",
                       value ? "true" : "false");
  check<ConfigError>(c.integer("downsample_padding", 1) == 1, "config '", c.path(), ".downsample_padding' must be 1");
  check<ConfigError>(c.number("mid_block_scale_factor", 1) == 1, "config '", c.path(),
                     ".mid_block_scale_factor' must be 1");
  for (const char* key : {"sample_size", "_class_name", "_diffusers_version", "upcast_attention", "num_class_embeds"})
    c.ignore(key);
  c.finish();
  return r;
}

std::vector<int64_t> UnetConfig::residual_widths() const {
  std::vector<int64_t> widths{block_out_channels[0]};
  for (size_t i = 0; i < block_out_channels.size(); i++)
    widths.insert(widths.end(), size_t(layers_per_block) + (i + 1 < block_out_channels.size()), block_out_channels[i]);
  return widths;
}

// ---- attention over positions ------------------------------------------------------------------------------------------

Unet::Attention::Attention(const Scope& s, int64_t width, int64_t context_width, int64_t heads)
    : to_q(s / "to_q", width, width, false),
      to_k(s / "to_k", context_width, width, false),
      to_v(s / "to_v", context_width, width, false),
      to_out(s / "to_out" / 0, width, width),
      heads(heads) {}

Tensor Unet::Attention::added_to(const Tensor& residual, const Tensor& x, const Tensor& context) const {
  auto split = [this](const Tensor& t) { return reshape(t, {t.size(0), t.size(1), heads, t.size(2) / heads}); };
  return to_out.added_to(residual,
                         reshape(attention(split(to_q(x)), split(to_k(context)), split(to_v(context))), x.shape()));
}

Unet::Transformer::Transformer(const Scope& s, int64_t width, int64_t heads, const UnetConfig& c)
    : norm(s / "norm", width, c.norm_num_groups, 1e-6),
      norm1(s / "transformer_blocks" / 0 / "norm1", width, 1e-5),
      norm2(s / "transformer_blocks" / 0 / "norm2", width, 1e-5),
      norm3(s / "transformer_blocks" / 0 / "norm3", width, 1e-5),
      attn1(s / "transformer_blocks" / 0 / "attn1", width, width, heads),
      attn2(s / "transformer_blocks" / 0 / "attn2", width, c.cross_attention_dim, heads),
      ff_in(s / "transformer_blocks" / 0 / "ff" / "net" / 0 / "proj", width, 8 * width),
      ff_out(s / "transformer_blocks" / 0 / "ff" / "net" / 2, 4 * width, width) {
  // The same product either way; older files store it as a 1x1 convolution.
  for (auto [name, weight, bias] :
       {std::tuple{"proj_in", &proj_in_weight, &proj_in_bias}, {"proj_out", &proj_out_weight, &proj_out_bias}}) {
    if (c.use_linear_projection) {
      Linear l(s / name, width, width);
      *weight = l.weight, *bias = *l.bias;
    } else {
      Conv2d conv(s / name, width, width, 1);
      *weight = conv.weight, *bias = conv.bias;
    }
  }
}

Tensor Unet::Transformer::operator()(const Tensor& x, const Tensor& context) const {
  int64_t n = x.size(0), c = x.size(3);
  auto project = [c](const Tensor& t, const Tensor& w, const Tensor& b) {
    return linear(t, w.ndim() == 2 ? w : reshape(w, {c, c}), b);
  };
  Tensor h = project(reshape(norm(x), {n, x.size(1) * x.size(2), c}), proj_in_weight, proj_in_bias);
  Tensor n1 = norm1(h);
  h = attn1.added_to(h, n1, n1);
  h = attn2.added_to(h, norm2(h), context);
  h = ff_out.added_to(h, geglu(ff_in(norm3(h))));
  return add(x, reshape(project(h, proj_out_weight, proj_out_bias), x.shape()));
}

// ---- the UNet ----------------------------------------------------------------------------------------------------------

Unet::Unet(const Scope& s, const UnetConfig& c) : config(c) {
  const auto& widths = c.block_out_channels;
  int64_t time = 4 * widths[0], blocks = int64_t(widths.size());
  conv_in = Conv2d(s / "conv_in", c.in_channels, widths[0], 3, 1, 1);
  time1 = Linear(s / "time_embedding" / "linear_1", widths[0], time);
  time2 = Linear(s / "time_embedding" / "linear_2", time, time);
  auto resnet = [&](const Scope& at, int64_t in, int64_t out) {
    return ResnetBlock(at, in, out, time, c.norm_num_groups, c.norm_eps);
  };

  int64_t in = widths[0];
  for (int64_t i = 0; i < blocks; i++) {
    Scope at = s / "down_blocks" / i;
    Block b;
    int64_t out = widths[size_t(i)];
    for (int64_t l = 0; l < c.layers_per_block; l++, in = out) {
      b.resnets.push_back(resnet(at / "resnets" / l, in, out));
      if (c.down_cross[size_t(i)]) b.attentions.emplace_back(at / "attentions" / l, out, c.heads[size_t(i)], c);
    }
    if (i + 1 < blocks) b.resample = Conv2d(at / "downsamplers" / 0 / "conv", out, out, 3, 2, 1);
    down.push_back(std::move(b));
  }
  for (int64_t l = 0; l < 2; l++) mid.resnets.push_back(resnet(s / "mid_block" / "resnets" / l, in, in));
  mid.attentions.emplace_back(s / "mid_block" / "attentions" / 0, in, c.heads.back(), c);

  std::vector<int64_t> residuals = c.residual_widths();
  for (int64_t i = 0; i < blocks; i++) {
    Scope at = s / "up_blocks" / i;
    Block b;
    size_t mirror = size_t(blocks - 1 - i);
    int64_t out = widths[mirror];
    for (int64_t l = 0; l <= c.layers_per_block; l++, in = out) {
      b.resnets.push_back(resnet(at / "resnets" / l, in + residuals.back(), out));
      residuals.pop_back();
      if (c.up_cross[size_t(i)]) b.attentions.emplace_back(at / "attentions" / l, out, c.heads[mirror], c);
    }
    if (i + 1 < blocks) b.resample = Conv2d(at / "upsamplers" / 0 / "conv", out, out, 3, 1, 1);
    up.push_back(std::move(b));
  }
  conv_norm_out = GroupNorm(s / "conv_norm_out", widths[0], c.norm_num_groups, c.norm_eps);
  conv_out = Conv2d(s / "conv_out", widths[0], c.out_channels, 3, 1, 1);
}

Tensor Unet::forward(const Tensor& sample, const Tensor& timesteps, const Tensor& context,
                     const std::optional<MmfsInputs>& mmfs, bool checkpointed) const {
  check<ShapeError>(sample.ndim() == 4 && sample.size(3) == config.in_channels, "[unet] sample must be [N, h, w, ",
                    config.in_channels, "] but has shape ", sample.shape());
  check<ShapeError>(timesteps.shape() == Shape{sample.size(0)}, "[unet] timesteps must be [", sample.size(0),
                    "] but have shape ", timesteps.shape());
  check<ShapeError>(
      context.ndim() == 3 && context.size(0) == sample.size(0) && context.size(2) == config.cross_attention_dim,
      "[unet] context must be [", sample.size(0), ", T, ", config.cross_attention_dim, "] but has shape ",
      context.shape());
  return denoise(sample, look_up(timesteps).to(sample.device()), context, mmfs, checkpointed);
}

Tensor Unet::denoise(const Tensor& sample, const Tensor& looked_up, const Tensor& context,
                     const std::optional<MmfsInputs>& mmfs, bool checkpointed) const {
  DType dtype = conv_in.weight.dtype();
  Tensor embedding = cast(looked_up, dtype);
  Tensor time = silu(time2(time1(embedding, Activation::silu))), words = cast(context, dtype);

  // One resnet with its attention; a block of a checkpoint.
  auto layer = [&](const Block& b, size_t l, const Tensor& x) {
    auto run = [&b, l](const Tensors& in) {
      Tensor y = b.resnets[l](in[0], in[1]);
      return l < b.attentions.size() ? b.attentions[l](y, in[2]) : y;
    };
    Tensors in{x, time, words};
    return checkpointed ? checkpoint(run, in, b.resnets[l].conv1.weight.requires_grad()) : run(in);
  };

  Tensor x = conv_in(cast(sample, dtype));
  Tensors residuals{x};
  for (const Block& b : down) {
    for (size_t l = 0; l < b.resnets.size(); l++) residuals.push_back(x = layer(b, l, x));
    if (b.resample) residuals.push_back(x = (*b.resample)(x));
  }
  x = layer(mid, 0, x);
  x = mid.resnets[1](x, time);
  if (mmfs) mmfs->net->apply(x, residuals, mmfs->maps, mmfs->mask);
  for (const Block& b : up) {
    for (size_t l = 0; l < b.resnets.size(); l++) {
      x = layer(b, l, cat({x, residuals.back()}, 3));
      residuals.pop_back();
    }
    // To the size of the next residual, which is not always the double.
    if (b.resample) x = (*b.resample)(resize_nearest(x, residuals.back().size(1), residuals.back().size(2)));
  }
  return cast(conv_out(conv_norm_out(x, true)), sample.dtype());
}

namespace {

struct UnetModel : Model {
  std::unique_ptr<Unet> unet;
  std::unique_ptr<MmfsNet> net;
  std::unique_ptr<NoiseSchedule> schedule;

  // {unet, mmfs?, scheduler?}
  UnetModel(const Json& config, const BuildOptions& build) : Model(build) {
    Config c(config, "unet");
    UnetConfig uc = UnetConfig::read(c.child("unet"));
    unet = std::make_unique<Unet>(Scope(params) / "unet", uc);
    if (c.has("mmfs")) {
      MmfsNetConfig mc = MmfsNetConfig::read(c.child("mmfs"));
      check<ConfigError>(mc.feature_dim.has_value(), "config 'unet.mmfs' lacks the key 'feature_dim'");
      net = std::make_unique<MmfsNet>(Scope(params) / "mmfs_module", mc, uc.residual_widths(), *mc.feature_dim);
    }
    if (c.has("scheduler")) schedule = std::make_unique<NoiseSchedule>(NoiseScheduleConfig::read(c.child("scheduler")));
    c.finish();
  }

  std::optional<MmfsInputs> features(const TensorMap& inputs) const {
    Tensors maps;
    while (auto m = optional_input(inputs, "map." + std::to_string(maps.size()))) maps.push_back(*m);
    if (maps.empty()) return {};
    check<ConfigError>(net != nullptr, "[unet] maps were given but this model has no mmfs");
    return MmfsInputs{net.get(), maps, input(inputs, "image_mask")};
  }
  const NoiseSchedule& noise() const {
    check<ConfigError>(schedule != nullptr, "[unet] this method needs a model with a scheduler");
    return *schedule;
  }

  // forward: sample, timesteps, context, map.0.., image_mask -> pred. loss: latent, noise?, timesteps?, context, maps -> loss,
  // noisy, pred, target. sample: latent (noise), context, negative?, maps -> latent.
  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    Config o(options, "options");
    bool checkpointed = o.boolean("checkpoint", false);
    const Tensor& context = input(inputs, "context");
    auto mmfs = features(inputs);
    if (method == "forward") {
      o.finish();
      return {
          {"pred", unet->forward(input(inputs, "sample"), input(inputs, "timesteps"), context, mmfs, checkpointed)}};
    }
    if (method == "loss") {
      std::string kind = o.string("prediction_type", "");
      o.finish();
      const Tensor& latent = input(inputs, "latent");
      auto given_noise = optional_input(inputs, "noise"), given_t = optional_input(inputs, "timesteps");
      int64_t seed = int64_t(rng_state().seed);
      Tensor eps = given_noise ? *given_noise : randn(latent.shape(), seed, int64_t(take_stream()), latent.device());
      Tensor t = given_t ? *given_t : randint({latent.size(0)}, 0, noise().steps(), seed, int64_t(take_stream()));
      Tensor noisy = noise().add_noise(latent, eps, t), target = noise().target(latent, eps, t, kind);
      Tensor pred = unet->forward(noisy, t, context, mmfs, checkpointed);
      return {{"loss", mse_loss(pred, target)}, {"noisy", noisy}, {"pred", pred}, {"target", target}};
    }
    if (method == "sample") {
      Sampler sampler(noise(), SamplerConfig::read(o));
      double guidance = o.number("guidance", 1);
      o.finish();
      Guided guided(*unet, {context, optional_input(inputs, "negative"), mmfs, guidance});
      Tensor x = mul_scalar(input(inputs, "latent"), sampler.initial_deviation());
      GradMode off(false);
      for (int64_t i = 0; i < sampler.evaluations(); i++) {
        poll_cancel();
        Tensor y = guided(sampler.scale_input(x, i), sampler.timesteps()[size_t(i)]);
        MaybeTensor noise;
        if (sampler.draws(i)) noise = randn(x.shape(), int64_t(rng_state().seed), int64_t(take_stream()), x.device());
        x = sampler.step(x, y, i, noise);
        report_progress(i + 1, sampler.evaluations());
      }
      return {{"latent", x}};
    }
    unknown_method("unet", method);
  }
};

std::unique_ptr<Model> make(const Json& config, const BuildOptions& build) {
  return std::make_unique<UnetModel>(config, build);
}
const RegisterModel r{"unet", make};

}  // namespace

Guided::Guided(const Unet& unet, const Conditions& c)
    : unet_(unet), context_(c.context), mmfs_(c.mmfs), guidance_(c.guidance), both_(c.guidance != 1 && c.negative) {
  GradMode off(false);
  if (!both_) return;
  context_ = cat({contiguous(broadcast_to(*c.negative, c.context.shape())), c.context}, 0);
  if (!mmfs_) return;
  for (Tensor& m : mmfs_->maps) m = cat({m, m}, 0);
  mmfs_->mask = cat({mmfs_->mask, mmfs_->mask}, 0);
}

// From what the denoiser says of both halves of its batch.
Tensor Guided::guide(const Tensor& y) const {
  if (!both_) return y;
  int64_t n = y.size(0) / 2;
  Tensor without = slice(y, 0, 0, n), with = slice(y, 0, n, 2 * n);
  return add(without, mul_scalar(sub(with, without), guidance_));
}

Tensor Guided::operator()(const Tensor& x, double timestep) {
  GradMode off(false);
  auto batch = [&](const Tensor& one) { return both_ ? cat({one, one}, 0) : one; };
  Tensor timesteps = Tensor::full({both_ ? 2 * x.size(0) : x.size(0)}, timestep, DType::f32);
  auto at_once = [&] { return guide(unet_.forward(batch(x), timesteps, context_, mmfs_)); };
  if (!records_ || !records_graphs(x.device())) return at_once();
  if (shape_ != x.shape() || dtype_ != x.dtype()) {
    recorded_ = {};
    shape_ = x.shape();
    dtype_ = x.dtype();
    return at_once();
  }
  Tensor looked_up = unet_.look_up(timesteps);
  Recorded& r = recorded_;
  if (!r.graph) try {
      r.x = Tensor::empty(x.shape(), x.dtype(), x.device());
      r.looked_up = looked_up.to(x.device());
      r.graph = std::make_unique<DeviceGraph>(
          x.device(), [&] { r.y = guide(unet_.denoise(batch(r.x), r.looked_up, context_, mmfs_, false)); });
    } catch (const OutOfMemory&) {  // a graph keeps all that a pass makes
      recorded_ = {};
      records_ = false;
      return at_once();
    }
  r.x.overwrite(contiguous(x));
  r.looked_up.overwrite(looked_up);
  r.graph->launch();
  return r.y.clone();  // the next launch writes there
}

}  // namespace deem
