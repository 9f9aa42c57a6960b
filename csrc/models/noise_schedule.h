// Noise of diffusion training (Ho et al., DDPM), with the arithmetic of the usual libraries: tables in f32. Latents are
// [N, h, w, C]; sampler.h has the way back.
#pragma once
#include "models/module.h"

namespace deem {

struct NoiseScheduleConfig {
  int64_t num_train_timesteps, steps_offset;
  double beta_start, beta_end;
  std::string beta_schedule;    // scaled_linear, linear or squaredcos_cap_v2
  std::string prediction_type;  // epsilon, v_prediction or sample
  bool set_alpha_to_one;

  static NoiseScheduleConfig read(const Config& c);
};

class NoiseSchedule {
 public:
  explicit NoiseSchedule(const NoiseScheduleConfig& c);
  int64_t steps() const { return config_.num_train_timesteps; }
  const NoiseScheduleConfig& config() const { return config_; }
  const std::vector<float>& betas() const { return betas_; }
  const std::vector<float>& alphas_cumprod() const { return alphas_cumprod_; }

  // sqrt(a_t) x + sqrt(1 - a_t) noise, t [N] i64 on the host in 0..steps-1 (else IndexError)
  Tensor add_noise(const Tensor& latent, const Tensor& noise, const Tensor& t) const;
  Tensor velocity(const Tensor& latent, const Tensor& noise,
                  const Tensor& t) const;  // sqrt(a_t) noise - sqrt(1 - a_t) x
  // What the denoiser is to predict; kind overrides the configured prediction_type.
  Tensor target(const Tensor& latent, const Tensor& noise, const Tensor& t, const std::string& kind = "") const;

 private:
  Tensor factors(const Tensor& t, bool noise, const Tensor& like) const;  // [N, 1, 1, 1], dtype and device of `like`
  NoiseScheduleConfig config_;
  std::vector<float> betas_, alphas_cumprod_;
};

// The consistency loss draws from the middle: round((t - 500) * 0.6 + 500), i.e. 200..799. t i64.
Tensor sniffer_timesteps(const Tensor& t);

}  // namespace deem
