// A picture on its way from noise: what it is painted from, the sampler, and the state so far. K pictures, latents [K, h, w, C],
// pictures [K, H, W, 3] in 0..1.
#pragma once
#include "models/deem.h"

namespace deem {

struct PictureOptions {
  SamplerConfig sampler;
  double guidance;
  double strength;  // how much of the way is gone from a given picture: 1 from noise alone, near 0 hardly changes it
  std::vector<int64_t> seeds;  // of the noise, one a picture
  int64_t height, width;       // pixels
  MaybeTiling tiling;          // of the VAE

  PictureOptions(const Config& c,
                 const Denoiser& denoiser);  // all keys; finishes. Sizes default to those the model was trained at.
};

class PictureSession : public Model {
 public:
  // inputs: latent? the unit noise to start from, else drawn from the seeds. picture? to start from as far as the strength says; with
  // repaint? [K, H, W, 1] only what lies where it is above 0 changes. Holds the model that `conditions` belong to.
  PictureSession(std::shared_ptr<Model> owner, const Denoiser& denoiser, Conditions conditions, const TensorMap& inputs,
                 const PictureOptions& options);

  // plan: -> timesteps [E], next (a scalar: the evaluation that comes). advance: noise? [K, h, w, C] for a single evaluation,
  // {evaluations?: all that are left} -> latent. decode: -> image. conditions: -> cond [K, T, D].
  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override;

 private:
  Tensor drawn(int64_t stream) const;  // [K, h, w, C], each picture from its own seed
  void advance(const MaybeTensor& noise);
  Tensor at_level(const Tensor& clean, int64_t evaluation) const;

  std::shared_ptr<Model> owner_;
  const Denoiser& denoiser_;
  Conditions conditions_;
  Guided guided_;
  Sampler sampler_;
  std::vector<int64_t> seeds_;
  Tensor x_, start_noise_;
  int64_t height_, width_;  // of the latents
  MaybeTiling tiling_;
  MaybeTensor kept_, repaint_;  // latent of the given picture; 1 where it is painted anew
  int64_t next_ = 0;
};

}  // namespace deem
