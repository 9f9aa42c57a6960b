#include "models/vae.h"

#include <algorithm>
#include <cmath>

#include "core/engine.h"
#include "core/rng.h"
#include "ops/view.h"

namespace deem {

static constexpr double kNormEps = 1e-6;

VaeConfig VaeConfig::read(const Config& c) {
  VaeConfig r;
  r.in_channels = c.positive("in_channels", 3);
  r.out_channels = c.positive("out_channels", 3);
  r.block_out_channels = c.integers("block_out_channels");
  r.layers_per_block = c.positive("layers_per_block", 1);
  r.latent_channels = c.positive("latent_channels", 4);
  r.norm_num_groups = c.positive("norm_num_groups", 32);
  r.scaling_factor = c.number("scaling_factor", 0.18215);
  check<ConfigError>(!r.block_out_channels.empty(), "config '", c.path(), ".block_out_channels' must not be empty");
  for (int64_t width : r.block_out_channels)
    check<ConfigError>(width > 0, "config '", c.path(), ".block_out_channels' must be positive but holds ", width);
  check<ConfigError>(r.scaling_factor > 0, "config '", c.path(), ".scaling_factor' must be positive but is ",
                     r.scaling_factor);
  size_t blocks = r.block_out_channels.size();
  for (auto [key, kind] :
       {std::pair{"down_block_types", "DownEncoderBlock2D"}, {"up_block_types", "UpDecoderBlock2D"}}) {
    auto types = c.strings(key, std::vector<std::string>(blocks, kind));
    check<ConfigError>(
        types.size() == blocks && std::all_of(types.begin(), types.end(), [&](auto& t) { return t == kind; }),
        "config '", c.path(), ".", key, "' must name ", blocks, " times ", kind);
  }
  check<ConfigError>(c.string("act_fn", "silu") == "silu", "config '", c.path(), ".act_fn' must be silu");
  for (const char* key : {"sample_size", "_class_name", "_diffusers_version", "force_upcast"}) c.ignore(key);
  c.finish();
  return r;
}

// Fresh convolutions keep the size of what passes and have no bias. With the default of Conv2d every one of them shrinks it by
// sqrt(3) beside biases that stay, and colours are learnt several times later.
static const double kGain = std::sqrt(2.0);

static Conv2d conv(const Scope& s, int64_t in, int64_t out, int64_t kernel, const Conv2dOptions& options) {
  return Conv2d(s, in, out, kernel, options, Init::scaled(kGain, in * kernel * kernel));
}

static const Conv2dOptions kSame{1, 1, 1, 1, 1, 1};

static ResnetBlock resnet(const Scope& s, int64_t in, int64_t out, int64_t groups) {
  return ResnetBlock(s, in, out, 0, groups, kNormEps, kGain);
}

Vae::Attention::Attention(const Scope& s, int64_t channels, int64_t groups)
    : group_norm(s / "group_norm", channels, groups, kNormEps),
      to_q(s / "to_q", channels, channels),
      to_k(s / "to_k", channels, channels),
      to_v(s / "to_v", channels, channels),
      to_out(s / "to_out" / 0, channels, channels) {}

Tensor Vae::Attention::operator()(const Tensor& x) const {
  int64_t n = x.size(0), positions = x.size(1) * x.size(2), c = x.size(3);
  Tensor h = group_norm(x);
  auto heads = [&](const Linear& l) { return reshape(l(h), {n, positions, 1, c}); };
  return add(x, to_out(reshape(attention(heads(to_q), heads(to_k), heads(to_v)), x.shape())));
}

Vae::Mid::Mid(const Scope& s, int64_t channels, int64_t groups)
    : first(resnet(s / "resnets" / 0, channels, channels, groups)),
      attention(s / "attentions" / 0, channels, groups),
      second(resnet(s / "resnets" / 1, channels, channels, groups)) {}

// The encoder walks the widths up, the decoder down with one more block per width.
Vae::Half::Half(const Scope& s, const VaeConfig& c, bool encoder)
    : mid(s / "mid_block", c.block_out_channels.back(), c.norm_num_groups) {
  std::vector<int64_t> widths = c.block_out_channels;
  if (!encoder) std::reverse(widths.begin(), widths.end());
  conv_in = conv(s / "conv_in", encoder ? c.in_channels : c.latent_channels, widths.front(), 3, kSame);
  int64_t in = widths.front();
  for (size_t i = 0; i < widths.size(); i++) {
    Scope at = s / (encoder ? "down_blocks" : "up_blocks") / int64_t(i);
    Block block;
    for (int64_t l = 0; l < c.layers_per_block + (encoder ? 0 : 1); l++, in = widths[i])
      block.resnets.push_back(resnet(at / "resnets" / l, in, widths[i], c.norm_num_groups));
    if (i + 1 < widths.size()) {
      // The encoder pads right and bottom only.
      if (encoder) block.resample = conv(at / "downsamplers" / 0 / "conv", in, in, 3, Conv2dOptions{2, 0, 1, 0, 1, 1});
      else block.resample = conv(at / "upsamplers" / 0 / "conv", in, in, 3, kSame);
    }
    blocks.push_back(std::move(block));
  }
  conv_norm_out = GroupNorm(s / "conv_norm_out", widths.back(), c.norm_num_groups, kNormEps);
  conv_out = conv(s / "conv_out", widths.back(), encoder ? 2 * c.latent_channels : c.out_channels, 3, kSame);
}

Vae::Vae(const Scope& s, const VaeConfig& c)
    : config(c),
      encoder(s / "encoder", c, true),
      decoder(s / "decoder", c, false),
      quant_conv(conv(s / "quant_conv", 2 * c.latent_channels, 2 * c.latent_channels, 1, Conv2dOptions{})),
      post_quant_conv(conv(s / "post_quant_conv", c.latent_channels, c.latent_channels, 1, Conv2dOptions{})) {}

// ---- tiles -------------------------------------------------------------------------------------------------------------

std::optional<Tiling> Tiling::read(const Config& c, int64_t factor) {
  if (!c.has("tile_size")) return {};
  int64_t size = c.integer("tile_size"), overlap = c.integer("tile_overlap", size / 4 / factor * factor);
  check<ConfigError>(size > 0 && size % factor == 0, "config '", c.path(),
                     ".tile_size' must be a positive multiple of ", factor, " pixels but is ", size);
  check<ConfigError>(overlap >= 0 && overlap % factor == 0 && overlap <= size / 2, "config '", c.path(),
                     ".tile_overlap' must be a multiple of ", factor, " pixels and at most half of a tile of ", size,
                     " but is ", overlap);
  return Tiling{size, overlap};
}

namespace {

// A stretch of one axis. Positions count in latents, weights in outputs; at each output those of all stretches sum to 1.
struct Stretch {
  int64_t begin, length;
  std::vector<float> weight;
};

std::vector<Stretch> stretches(int64_t total, int64_t size, int64_t overlap, int64_t scale) {
  if (total <= size) return {{0, total, std::vector<float>(size_t(total * scale), 1)}};
  int64_t count = (total - overlap + size - overlap - 1) / (size - overlap);
  std::vector<Stretch> list;
  std::vector<float> sum(size_t(total * scale), 0);
  for (int64_t i = 0; i < count; i++) {
    Stretch s{i * (total - size) / (count - 1), size, std::vector<float>(size_t(size * scale), 1)};
    float reach = float(overlap * scale);
    for (int64_t k = 0; k < size * scale; k++) {
      float left = i > 0 ? float(k) + 0.5f : reach, right = i + 1 < count ? float(size * scale - k) - 0.5f : reach;
      float& w = s.weight[size_t(k)];
      if (overlap > 0) w = std::min({1.0f, left / reach, right / reach});
      sum[size_t(s.begin * scale + k)] += w;
    }
    list.push_back(std::move(s));
  }
  for (Stretch& s : list)
    for (size_t k = 0; k < s.weight.size(); k++) s.weight[k] /= sum[size_t(s.begin * scale) + k];
  return list;
}

// x [N, H, W, C], `in` positions and outputs `out` positions a latent -> the blend of f over the tiles, [N, .., .., channels].
template <class F>
Tensor blended(const Tensor& x, int64_t in, int64_t out, int64_t channels, int64_t factor, const Tiling& t, F f) {
  check<NoGradient>(!grad_enabled(), "[vae] tiles have no gradient: work without one, or on the whole picture");
  auto cut = [&](int64_t length) { return stretches(length / in, t.size / factor, t.overlap / factor, out); };
  std::vector<Stretch> rows = cut(x.size(1)), columns = cut(x.size(2));
  Tensor y = Tensor::zeros({x.size(0), x.size(1) / in * out, x.size(2) / in * out, channels}, DType::f32, x.device());
  int64_t done = 0, total = x.size(0) * int64_t(rows.size() * columns.size());
  for (int64_t n = 0; n < x.size(0); n++)
    for (const Stretch& r : rows)
      for (const Stretch& c : columns) {
        poll_cancel();
        auto part = [&](const Tensor& of, int64_t scale) {
          Tensor row = slice(slice(of, 0, n, n + 1), 1, r.begin * scale, (r.begin + r.length) * scale);
          return slice(row, 2, c.begin * scale, (c.begin + c.length) * scale);
        };
        Tensor across = Tensor::from<float>({1, int64_t(c.weight.size()), 1}, c.weight).to(x.device());
        Tensor down = Tensor::from<float>({1, int64_t(r.weight.size()), 1, 1}, r.weight).to(x.device());
        Tensor to = part(y, out), tile = cast(f(contiguous(part(x, in))), DType::f32);
        copy_into(to, add(to, mul(tile, mul(down, across))));
        report_progress(++done, total);
      }
  return cast(y, x.dtype());
}

}  // namespace

static bool fits(const Tensor& x, int64_t size) { return x.size(1) <= size && x.size(2) <= size; }

std::pair<Tensor, Tensor> Vae::encode(const Tensor& image, const MaybeTiling& tiling) const {
  int64_t factor = this->factor(), c = config.latent_channels;
  check<ShapeError>(image.ndim() == 4 && image.size(3) == config.in_channels, "[vae] image must be [N, H, W, ",
                    config.in_channels, "] but has shape ", image.shape());
  check<ShapeError>(
      image.size(1) % factor == 0 && image.size(2) % factor == 0 && image.size(1) > 0 && image.size(2) > 0,
      "[vae] height and width must be multiples of ", factor, " but are ", image.size(1), " x ", image.size(2));
  bool whole = !tiling || fits(image, tiling->size);
  auto f = [this](const Tensor& tile) { return moments(tile); };
  Tensor m = whole ? f(image) : blended(image, factor, 1, 2 * c, factor, *tiling, f);
  return {slice(m, 3, 0, c), clamp(slice(m, 3, c, 2 * c), -30, 20)};
}

Tensor Vae::moments(const Tensor& image) const {
  Tensor x = encoder.conv_in(cast(image, quant_conv.weight.dtype()));
  for (const Block& block : encoder.blocks) {
    for (const ResnetBlock& r : block.resnets) x = r(x);
    if (block.resample) x = (*block.resample)(x);
  }
  return cast(quant_conv(encoder.conv_out(encoder.conv_norm_out(encoder.mid(x), true))), image.dtype());
}

Tensor Vae::sample_scaled(const Tensor& mean, const Tensor& logvar, const Tensor& eps) const {
  return mul_scalar(add(mean, mul(exp(mul_scalar(logvar, 0.5)), eps)), config.scaling_factor);
}

Tensor Vae::decode(const Tensor& latent, const MaybeTiling& tiling) const {
  check<ShapeError>(latent.ndim() == 4 && latent.size(3) == config.latent_channels, "[vae] latent must be [N, h, w, ",
                    config.latent_channels, "] but has shape ", latent.shape());
  check<ShapeError>(latent.size(1) > 0 && latent.size(2) > 0, "[vae] latent has no positions: its shape is ",
                    latent.shape());
  Tensor unscaled = mul_scalar(latent, 1 / config.scaling_factor);
  auto f = [this](const Tensor& tile) { return pixels(tile); };
  if (!tiling || fits(latent, tiling->size / factor())) return f(unscaled);
  return blended(unscaled, 1, factor(), config.out_channels, factor(), *tiling, f);
}

Tensor Vae::pixels(const Tensor& latent) const {
  Tensor x = decoder.mid(decoder.conv_in(post_quant_conv(cast(latent, post_quant_conv.weight.dtype()))));
  for (const Block& block : decoder.blocks) {
    for (const ResnetBlock& r : block.resnets) x = r(x);
    if (block.resample) x = (*block.resample)(resize_nearest(x, 2 * x.size(1), 2 * x.size(2)));
  }
  return cast(decoder.conv_out(decoder.conv_norm_out(x, true)), latent.dtype());
}

namespace {

struct VaeModel : Model {
  Vae vae;
  VaeModel(const Json& config, const BuildOptions& build)
      : Model(build), vae(Scope(params), VaeConfig::read(Config(config, "vae"))) {}

  // encode: image, eps?, options of Tiling -> mean, logvar, sample_scaled. decode: latent (scaled), options of Tiling -> image.
  // train: image, eps? -> loss, recon, kl.
  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    Config o(options, "options");
    if (method == "encode") {
      MaybeTiling tiling = Tiling::read(o, vae.factor());
      o.finish();
      auto [mean, logvar] = vae.encode(input(inputs, "image"), tiling);
      TensorMap out{{"mean", mean}, {"logvar", logvar}};
      if (auto eps = optional_input(inputs, "eps")) out["sample_scaled"] = vae.sample_scaled(mean, logvar, *eps);
      return out;
    }
    if (method == "decode") {
      MaybeTiling tiling = Tiling::read(o, vae.factor());
      o.finish();
      return {{"image", vae.decode(input(inputs, "latent"), tiling)}};
    }
    if (method == "train") return train(inputs, o);
    unknown_method("vae", method);
  }

  // Absolute error of the reconstruction plus kl_weight times the divergence from N(0, 1), both means over elements.
  TensorMap train(const TensorMap& inputs, const Config& o) const {
    double kl_weight = o.number("kl_weight", 1e-6), square_weight = o.number("square_weight", 1);
    o.finish();
    const Tensor& image = input(inputs, "image");
    auto [mean_, logvar] = vae.encode(image);
    MaybeTensor given = optional_input(inputs, "eps");
    Tensor eps =
        given ? *given : randn(mean_.shape(), int64_t(rng_state().seed), int64_t(take_stream()), mean_.device());
    Tensor recon = vae.decode(vae.sample_scaled(mean_, logvar, eps));
    Tensor error = sub(recon, image);
    Tensor fit = add(mean(abs(error)), mul_scalar(mean(square(error)), square_weight));
    Tensor kl = mul_scalar(mean(sub(add(square(mean_), exp(logvar)), add_scalar(logvar, 1))), 0.5);
    return {{"loss", add(fit, mul_scalar(kl, kl_weight))}, {"loss_recon", fit}, {"loss_kl", kl}};
  }
};

std::unique_ptr<Model> make(const Json& config, const BuildOptions& build) {
  return std::make_unique<VaeModel>(config, build);
}
const RegisterModel r{"vae", make};

}  // namespace

}  // namespace deem
