// Perceiver resampler: a BLIP-2 Q-Former over learned queries (model.md, step 3), optionally with LayerNorm on every head's
// q and k. B rows, T context tokens, Q queries, C its width, E the context's width.
#pragma once
#include "models/module.h"

namespace deem {

struct PerceiverConfig {
  int64_t num_queries, hidden_size, encoder_hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
  int64_t cross_attention_frequency;  // layers whose index is a multiple of it read the context
  bool qk_normalization;
  double layer_norm_eps;
  double hidden_dropout_prob, attention_probs_dropout_prob;

  static PerceiverConfig read(const Config& c);
};

struct Perceiver {
  // Attention, output projection, residual and norm, in the order of BERT.
  struct Attention {
    Linear query, key, value;
    std::optional<LayerNorm> q_norm, k_norm;
    Linear dense;
    LayerNorm norm;
    Attention(const Scope& s, const PerceiverConfig& c, int64_t context_width);
  };
  struct Layer {
    Attention self;
    std::optional<Attention> cross;
    Linear intermediate, output;
    LayerNorm norm;
    Layer(const Scope& s, const PerceiverConfig& c, bool with_cross);
  };

  PerceiverConfig config;
  LayerNorm layernorm;
  std::vector<Layer> layers;
  Tensor queries;  // [1, Q, C]

  Perceiver(const Scope& s, const PerceiverConfig& c);
  // context [B, T, E], context_mask [B, T] i64 or u8, 0 on padding -> [B, Q, C]
  Tensor operator()(const Tensor& context, const MaybeTensor& context_mask = {}, Mode mode = {}) const;

 private:
  Tensor attend(const Attention& a, const Tensor& x, const Tensor& context, const MaybeTensor& keep, Mode mode) const;
  Tensor hidden_dropout(const Tensor& x, Mode mode) const;
};

}  // namespace deem
