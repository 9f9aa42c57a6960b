// CLIP text encoder, with the names of transformers' CLIPTextModel. Causal, no padding mask. B rows of T ids, C width.
#pragma once
#include "models/module.h"

namespace deem {

struct ClipTextConfig {
  int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings;
  Activation hidden_act;  // gelu or quick_gelu
  double layer_norm_eps;

  static ClipTextConfig read(const Config& c);
};

struct ClipText {
  struct Layer {
    LayerNorm layer_norm1, layer_norm2;
    Linear q_proj, k_proj, v_proj, out_proj, fc1, fc2;
    Layer(const Scope& s, const ClipTextConfig& c);
  };

  ClipTextConfig config;
  Tensor token_embedding, position_embedding;  // [V, C], [max_position_embeddings, C]
  std::vector<Layer> layers;
  LayerNorm final_layer_norm;

  ClipText(const Scope& s, const ClipTextConfig& c);
  Tensor operator()(const Tensor& ids) const;  // [B, T] i64 -> [B, T, C] after the final norm
};

}  // namespace deem
