// Samplers: how a denoiser's outputs turn noise into a picture. Every one is a linear rule, x' = a x + b (what was predicted
// now and before) + c noise, over a plan of evaluations made once. Sources: DDPM (Ho et al. 2020), DDIM (Song et al. 2021), PNDM in
// its linear multi-step form (Liu et al. 2022), DPM-Solver++ 2M midpoint (Lu et al. 2022), Euler and ancestral Euler with the
// spacing of Karras et al. 2022. Timesteps and tables follow the usual libraries.
#pragma once
#include "models/noise_schedule.h"

namespace deem {

struct SamplerConfig {
  std::string kind;  // ddim, ddpm, pndm, dpmpp, euler or euler_ancestral
  int64_t steps;
  bool karras;  // noise levels as Karras et al. space them; dpmpp and the two Eulers
  double eta;   // noise of DDIM, 0: none, 1: as much as DDPM

  // Reads sampler, steps, karras, eta; the rest of `c` is the caller's.
  static SamplerConfig read(const Config& c);
};

class Sampler {
 public:
  Sampler(const NoiseSchedule& schedule, const SamplerConfig& config);

  int64_t evaluations() const { return int64_t(timesteps_.size()); }  // PNDM takes one more than the steps asked for
  // What the denoiser is told at each evaluation, falling; whole numbers but for the Eulers.
  const std::vector<double>& timesteps() const { return timesteps_; }
  const std::vector<double>& sigmas() const { return sigmas_; }  // one more than evaluations; dpmpp and the Eulers
  double initial_deviation() const;                              // of the first state: unit noise is multiplied by it
  bool draws(int64_t i) const;                                   // evaluation i adds noise
  // (s, n) such that s * clean + n * noise is a state that evaluation i can start from.
  std::pair<double, double> mix(int64_t i) const;

  Tensor scale_input(const Tensor& x, int64_t i) const;  // what the denoiser is shown of state x
  // Forgets what was predicted; the next evaluation is i (above 0 for image to image).
  void start(int64_t i = 0);
  // The state after evaluation i, which gave `output` for state x; evaluations go in order. noise: unit, of x's shape, wanted
  // where draws(i). Never recorded.
  Tensor step(const Tensor& x, const Tensor& output, int64_t i, const MaybeTensor& noise = {});

 private:
  double alpha_bar(int64_t t) const;  // before 0: what the schedule ends on
  Tensor clean(const Tensor& x, const Tensor& output, double signal, double noise) const;
  Tensor ddim(const Tensor& x, const Tensor& y, int64_t i, const MaybeTensor& noise) const;
  Tensor ddpm(const Tensor& x, const Tensor& y, int64_t i, const MaybeTensor& noise) const;
  Tensor pndm(const Tensor& x, const Tensor& y, int64_t i);
  Tensor dpmpp(const Tensor& x, const Tensor& y, int64_t i);
  Tensor euler(const Tensor& x, const Tensor& y, int64_t i, const MaybeTensor& noise) const;

  const NoiseSchedule& schedule_;
  SamplerConfig config_;
  std::vector<double> timesteps_, sigmas_;
  Tensors history_;  // what was predicted before, oldest first
  Tensor held_;      // PNDM: the state its second evaluation starts from again
  int64_t next_ = 0;
};

}  // namespace deem
