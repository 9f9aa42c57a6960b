#include "models/picture_session.h"

#include <algorithm>
#include <cmath>

#include "core/engine.h"

namespace deem {

static constexpr int64_t kMostPixels = int64_t(1) << 26;

PictureOptions::PictureOptions(const Config& c, const Denoiser& denoiser)
    : sampler(SamplerConfig::read(c)),
      guidance(c.number("guidance", 3.5)),
      strength(c.number("strength", 1)),
      seeds(c.integers("seeds", std::vector<int64_t>{})),
      height(c.integer("height", denoiser.sample_size * denoiser.vae.factor())),
      width(c.integer("width", denoiser.sample_size * denoiser.vae.factor())),
      tiling(Tiling::read(c, denoiser.vae.factor())) {
  // The UNet takes latents of any sides: on its way up it goes back to the sizes it had on its way down.
  for (auto [name, side] : {std::pair{"height", height}, {"width", width}})
    check<ConfigError>(side > 0 && side % denoiser.vae.factor() == 0, "config '", c.path(), ".", name,
                       "' must be a positive multiple of ", denoiser.vae.factor(),
                       " pixels, which the VAE makes one latent, but is ", side);
  check<ConfigError>(height <= kMostPixels / width, "config '", c.path(), "': pictures must have at most ", kMostPixels,
                     " pixels but this one has ", width, " x ", height);
  check<ConfigError>(strength > 0 && strength <= 1, "config '", c.path(),
                     ".strength' must be above 0 and at most 1 but is ", strength);
  c.finish();
}

static Conditions with_guidance(Conditions c, double guidance) {
  c.guidance = guidance;
  return c;
}

PictureSession::PictureSession(std::shared_ptr<Model> owner, const Denoiser& denoiser, Conditions conditions,
                               const TensorMap& given_inputs, const PictureOptions& o)
    : Model({.dtype = owner->params.dtype()}),
      owner_(std::move(owner)),
      denoiser_(denoiser),
      conditions_(with_guidance(std::move(conditions), o.guidance)),
      guided_(denoiser.unet, conditions_),
      sampler_(denoiser.schedule, o.sampler),
      seeds_(o.seeds),
      height_(o.height / denoiser.vae.factor()),
      width_(o.width / denoiser.vae.factor()),
      tiling_(o.tiling) {
  TensorMap inputs = placed(owner_->params, given_inputs);
  int64_t n = conditions_.context.size(0);
  Shape shape{n, height_, width_, denoiser.vae.config.latent_channels};
  MaybeTensor given = optional_input(inputs, "latent"), picture = optional_input(inputs, "picture"),
              repaint = optional_input(inputs, "repaint");
  check<ConfigError>(seeds_.empty() || int64_t(seeds_.size()) == n,
                     "config 'picture.seeds' must have a seed for each of ", n, " pictures but has ", seeds_.size());
  if (seeds_.empty()) seeds_.assign(size_t(n), 0);
  if (given) {
    check<ShapeError>(given->shape() == shape, "[deem] latent must be ", shape, " but has shape ", given->shape());
    check<DTypeError>(is_float(given->dtype()), "[deem] latent must be floating but is ", given->dtype());
  }
  start_noise_ = given ? *given : drawn(0);
  check<ConfigError>(o.strength == 1 || picture, "config 'picture.strength' needs a picture to start from");
  check<ValueError>(!repaint || picture, "[picture] repaint needs the picture whose rest is kept");
  if (picture) {
    Shape whole{n, o.height, o.width, denoiser.vae.config.in_channels};
    check<ShapeError>(picture->shape() == whole, "[picture] picture must be ", whole, " but has shape ",
                      picture->shape());
    check<DTypeError>(is_float(picture->dtype()), "[picture] picture must be floating but is ", picture->dtype());
    Tensor mean = denoiser.vae.encode(add_scalar(mul_scalar(*picture, 2), -1), tiling_).first;
    kept_ = mul_scalar(mean, denoiser.vae.config.scaling_factor);
    if (repaint) {
      whole[3] = 1;
      check<ShapeError>(repaint->shape() == whole, "[picture] repaint must be ", whole, " but has shape ",
                        repaint->shape());
      repaint_ = cast(greater(resize_bilinear(cast(*repaint, DType::f32), height_, width_), 0), DType::f32);
    }
    int64_t steps = sampler_.evaluations();
    next_ = std::min(steps - 1, steps - std::max(int64_t(1), int64_t(std::llround(double(steps) * o.strength))));
  }
  sampler_.start(next_);
  x_ = kept_ && o.strength < 1 ? at_level(*kept_, next_) : mul_scalar(start_noise_, sampler_.initial_deviation());
}

Tensor PictureSession::drawn(int64_t stream) const {
  Shape one{1, height_, width_, denoiser_.vae.config.latent_channels};
  Device device = conditions_.context.device();
  Tensors each;
  for (int64_t seed : seeds_) each.push_back(randn(one, seed, stream, device));
  one[0] = 0;
  return each.empty() ? Tensor::empty(one, DType::f32, device) : cat(each, 0);
}

// A clean latent with the noise that a state has before an evaluation; after the last one none.
Tensor PictureSession::at_level(const Tensor& clean, int64_t evaluation) const {
  if (evaluation == sampler_.evaluations()) return clean;
  auto [signal, noise] = sampler_.mix(evaluation);
  return add(mul_scalar(clean, signal), mul_scalar(start_noise_, noise));
}

void PictureSession::advance(const MaybeTensor& given) {
  Tensor y = guided_(sampler_.scale_input(x_, next_), sampler_.timesteps()[size_t(next_)]);
  MaybeTensor noise = given;
  if (!noise && sampler_.draws(next_)) noise = drawn(1 + next_);
  Tensor x = sampler_.step(x_, y, next_, noise);
  if (repaint_) x = add(mul(x, *repaint_), mul(at_level(*kept_, next_ + 1), add_scalar(mul_scalar(*repaint_, -1), 1)));
  x_ = x;
  next_++;
}

TensorMap PictureSession::call(const std::string& method, const TensorMap& inputs, const Json& options) {
  GradMode off(false);
  Config o(options, method);
  if (method == "advance") {
    int64_t left = sampler_.evaluations() - next_, n = o.integer("evaluations", left);
    o.finish();
    check<ConfigError>(n >= 0 && n <= left, "config 'advance.evaluations' must be 0..", left, " but is ", n);
    MaybeTensor noise = optional_input(inputs, "noise");
    if (noise) noise = noise->to(x_.device());
    check<ValueError>(!noise || n == 1, "[picture] noise is that of one evaluation but ", n, " were asked for");
    for (int64_t i = 0; i < n; i++) {
      poll_cancel();
      advance(noise);
      report_progress(i + 1, n);
    }
    return {{"latent", x_}};
  }
  o.finish();
  if (method == "plan") {
    Tensor t = Tensor::empty({sampler_.evaluations()});
    std::copy(sampler_.timesteps().begin(), sampler_.timesteps().end(), t.data<float>());
    return {{"timesteps", t}, {"next", Tensor::full({}, double(next_), DType::i64)}};
  }
  if (method == "decode") {
    Tensor decoded = denoiser_.vae.decode(x_, tiling_);
    return {{"image", clamp(add_scalar(mul_scalar(decoded, 0.5), 0.5), 0, 1)}};
  }
  if (method == "conditions") return {{"cond", conditions_.context}};
  unknown_method("picture", method);
}

}  // namespace deem
