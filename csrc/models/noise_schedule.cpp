#include "models/noise_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace deem {

NoiseScheduleConfig NoiseScheduleConfig::read(const Config& c) {
  NoiseScheduleConfig r{c.positive("num_train_timesteps", 1000), c.integer("steps_offset", 0),
                        c.number("beta_start", 0.0001),          c.number("beta_end", 0.02),
                        c.string("beta_schedule", "linear"),     c.string("prediction_type", "epsilon"),
                        c.boolean("set_alpha_to_one", true)};
  check<ConfigError>(!c.boolean("clip_sample", false), "config '", c.path(), ".clip_sample' must be false");
  check<ConfigError>(!c.has("trained_betas"), "config '", c.path(), ".trained_betas' is not supported");
  for (const char* key : {"skip_prk_steps", "_class_name", "_diffusers_version"}) c.ignore(key);
  c.finish();
  check<ConfigError>(
      r.prediction_type == "epsilon" || r.prediction_type == "v_prediction" || r.prediction_type == "sample",
      "config '", c.path(), ".prediction_type' must be epsilon, v_prediction or sample but is '", r.prediction_type,
      "'");
  check<ConfigError>(r.steps_offset >= 0, "config '", c.path(), ".steps_offset' must not be negative but is ",
                     r.steps_offset);
  for (double beta : {r.beta_start, r.beta_end})
    check<ConfigError>(beta >= 0 && beta < 1, "config '", c.path(), "': betas must be in [0, 1) but one is ", beta);
  return r;
}

// n numbers from a to b in f32, symmetric from both ends so that the last one is b.
static std::vector<float> linspace(float a, float b, int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  float step = n > 1 ? (b - a) / float(n - 1) : 0;
  for (int64_t i = 0; i < n; i++) v[size_t(i)] = i < n / 2 ? a + step * float(i) : b - step * float(n - 1 - i);
  return v;
}

static std::vector<float> betas_of(const NoiseScheduleConfig& c) {
  int64_t n = c.num_train_timesteps;
  std::vector<float> b;
  if (c.beta_schedule == "linear") {
    b = linspace(float(c.beta_start), float(c.beta_end), n);
  } else if (c.beta_schedule == "scaled_linear") {
    b = linspace(float(std::sqrt(c.beta_start)), float(std::sqrt(c.beta_end)), n);
    for (float& v : b) v *= v;
  } else if (c.beta_schedule == "squaredcos_cap_v2") {  // Nichol & Dhariwal, "Improved DDPM", with s = 0.008
    auto bar = [](double t) { return std::pow(std::cos((t + 0.008) / 1.008 * std::numbers::pi / 2), 2); };
    for (int64_t i = 0; i < n; i++)
      b.push_back(float(std::min(1 - bar(double(i + 1) / double(n)) / bar(double(i) / double(n)), 0.999)));
  } else {
    throw ConfigError("unknown beta_schedule '" + c.beta_schedule +
                      "', known are linear, scaled_linear, squaredcos_cap_v2");
  }
  return b;
}

NoiseSchedule::NoiseSchedule(const NoiseScheduleConfig& c) : config_(c), betas_(betas_of(c)) {
  double product = 1;
  for (float b : betas_) {
    product *= double(1.0f - b);
    alphas_cumprod_.push_back(float(product));
  }
}

Tensor NoiseSchedule::factors(const Tensor& t, bool noise, const Tensor& like) const {
  check<DTypeError>(t.dtype() == DType::i64, "[noise_schedule] timesteps must be i64 but are ", t.dtype());
  check<ShapeError>(t.ndim() == 1, "[noise_schedule] timesteps must be [N] but have shape ", t.shape());
  Tensor steps = contiguous(t).to(Device::cpu), f = Tensor::empty({t.size(0), 1, 1, 1});
  for (int64_t i = 0; i < t.size(0); i++) {
    int64_t at = steps.data<int64_t>()[i];
    check<IndexError>(at >= 0 && at < this->steps(), "[noise_schedule] timestep ", at, " is outside 0..",
                      this->steps() - 1);
    float a = alphas_cumprod_[size_t(at)];
    f.data<float>()[i] = std::sqrt(noise ? 1.0f - a : a);
  }
  return cast(f, like.dtype()).to(like.device());
}

static void check_noise(const Tensor& latent, const Tensor& noise, const Tensor& t) {
  check<ShapeError>(latent.ndim() == 4 && noise.shape() == latent.shape(),
                    "[noise_schedule] latent and noise must be one shape [N, h, w, C] but are ", latent.shape(),
                    " and ", noise.shape());
  check<ShapeError>(t.ndim() == 1 && t.size(0) == latent.size(0), "[noise_schedule] timesteps must be [",
                    latent.size(0), "] but have shape ", t.shape());
}

Tensor NoiseSchedule::add_noise(const Tensor& latent, const Tensor& noise, const Tensor& t) const {
  check_noise(latent, noise, t);
  return add(mul(latent, factors(t, false, latent)), mul(noise, factors(t, true, latent)));
}

Tensor NoiseSchedule::velocity(const Tensor& latent, const Tensor& noise, const Tensor& t) const {
  check_noise(latent, noise, t);
  return sub(mul(noise, factors(t, false, latent)), mul(latent, factors(t, true, latent)));
}

Tensor NoiseSchedule::target(const Tensor& latent, const Tensor& noise, const Tensor& t,
                             const std::string& kind) const {
  const std::string& type = kind.empty() ? config_.prediction_type : kind;
  if (type == "epsilon") return noise;
  if (type == "v_prediction") return velocity(latent, noise, t);
  if (type == "sample") return latent;
  throw ConfigError("unknown prediction_type '" + type + "', known are epsilon, v_prediction, sample");
}

Tensor sniffer_timesteps(const Tensor& t_in) {
  Tensor t = contiguous(t_in).to(Device::cpu), out = Tensor::empty(t.shape(), DType::i64);
  for (int64_t i = 0; i < t.numel(); i++)
    out.data<int64_t>()[i] = std::llround(double(t.data<int64_t>()[i] - 500) * 0.6 + 500);
  return out;
}

}  // namespace deem
