// DEEM whole (model.md): encoder, resampler, LLaMA with MMFS, text head, image decoder, denoiser, and the three losses.
// Parameter names are those of published checkpoints. N images, B rows of L ids, feature maps [N, h, w, C].
#pragma once
#include <array>

#include "models/convnext.h"
#include "models/interleave.h"
#include "models/llama.h"
#include "models/mmfs_net.h"
#include "models/module.h"
#include "models/noise_schedule.h"
#include "models/perceiver.h"
#include "models/text_head.h"
#include "models/unet.h"
#include "models/vae.h"

namespace deem {

// Where paper and released code differ (model.md, "Where the released code surprises"). Each can be set alone.
struct Compat {
  bool second_normalization;  // the image loss sees 4x - 3 instead of 2x - 1
  bool map_timesteps;         // the consistency loss draws t in 200..799 instead of all
  bool whole_history;         // the image decoder sees every earlier image of the document instead of the last
};

struct DeemConfig {
  LlamaConfig llm;
  ConvNextConfig convnext;
  PerceiverConfig visual_perceiver, image_perceiver;
  VaeConfig vae;
  UnetConfig unet;
  MmfsNetConfig mmfs;
  NoiseScheduleConfig schedule;
  SpecialTokens tokens;
  Compat compat;
  int64_t txt_vocab_size, seq_len, num_img_token, image_embed_dim, grid_size, image_size_in, image_size_dec;
  std::vector<int64_t> spatial_shapes;
  double uncond_prob;
  double weight_txt, weight_img, weight_sniffer;
  bool freeze_llm, freeze_vfm, freeze_dm, mask_align;

  static DeemConfig read(const Json& json);
};

// What the encoder saw of a batch of images.
struct Seen {
  Tensor query_embeds;         // [N, Q, C] after the resampler
  Tensor tokens;               // [N, 1 + h * w, D] before positions
  std::array<Tensor, 4> maps;  // [N, h, w, D] with positions added, unmasked
};

// The denoiser with its VAE: SD as DEEM uses it.
struct Denoiser {
  Vae vae;
  Unet unet;
  MmfsNet mmfs;
  NoiseSchedule schedule;
  int64_t sample_size;  // side of the latents
  Denoiser(const Scope& s, const DeemConfig& c);
};

// Pools features under a mask and embeds the mask itself: five tokens in front of the encoder's (mask_align).
struct MaskPooling {
  std::array<Linear, 3> mask_linear;
  Linear mask_feat_linear;
  int64_t width;
  MaskPooling(const Scope& s, int64_t width);
  Tensor operator()(const std::array<Tensor, 4>& maps, const Tensor& mask) const;
};

struct VisualTokenizer {
  Denoiser encoder;
  ConvNext sniffer;
  Linear pos_proj, proj_t, proj_i;
  LayerNorm pos_ln, post_ln;
  Tensor pos_embed, clip_mean, clip_std;
  Perceiver perceiver;
  std::optional<MaskPooling> feature_extractor;

  VisualTokenizer(const Scope& s, const DeemConfig& c);
  // image [N, H, W, 3] in 0..1, mask [N, H, W, 1]; both checked
  Seen look(const Tensor& image, const Tensor& mask, Mode mode) const;
};

// The maps as the consistency loss sees them: zero outside of the region, [N, 1, h, w, D] each.
Tensors masked_maps(const Seen& seen, const Tensor& mask);

class Deem : public Model {
 public:
  Deem(const Json& config, const BuildOptions& build);
  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override;
  std::unique_ptr<Model> open(const std::string& kind, const TensorMap& inputs, const Json& options,
                              const std::shared_ptr<Model>& self) override;

 private:
  friend class TextSession;
  // Encoder outputs, token embeddings and image features of a batch of rows.
  struct Prepared {
    ImageStarts starts;
    Seen seen;
    Tensor mask;        // [N, H, W, 1]
    Tensor embeds;      // [B, L, C]
    Tensor visibility;  // [B, L, most]
    Tensor features;    // [B, most, S, D]
  };
  Prepared prepare(const TensorMap& inputs, Mode mode) const;
  // The image decoder's reading of the states before each image.
  struct ImageContext {
    Tensor features, keep, cond, history_mask;
    std::vector<Tensor> history;  // per map [N, K, h, w, D]
  };
  ImageContext image_context(const Prepared& p, const Tensor& hidden, Mode mode) const;
  // The same without the history. states [B * L, C].
  ImageContext read_context(const Tensor& states, const Contexts& contexts, Mode mode) const;
  Tensor visible_mask(const TensorMap& inputs) const;

  TensorMap train(const TensorMap& inputs, const Json& options) const;
  TensorMap see(const TensorMap& inputs, const Json& options) const;
  TensorMap conditions(const TensorMap& inputs, const Json& options) const;
  Conditions painting(const TensorMap& inputs) const;
  Conditions reconstruction(const TensorMap& inputs) const;
  void check_pictures(const TensorMap& inputs, int64_t n) const;

  DeemConfig c_;
  VisualTokenizer visual_;
  Llama llm_;
  TextHead head_;
  Perceiver image_perceiver_;
  Tensor neg_prompt_embeds_;
  Linear context_feat_proj_;
  Tensor soi_token_;
};

}  // namespace deem
