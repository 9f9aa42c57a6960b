#include "models/clip_text.h"

#include <cmath>

namespace deem {

ClipTextConfig ClipTextConfig::read(const Config& c) {
  ClipTextConfig t{.vocab_size = c.positive("vocab_size"),
                   .hidden_size = c.positive("hidden_size"),
                   .intermediate_size = c.positive("intermediate_size"),
                   .num_hidden_layers = c.positive("num_hidden_layers"),
                   .num_attention_heads = c.positive("num_attention_heads"),
                   .max_position_embeddings = c.positive("max_position_embeddings"),
                   .hidden_act = Activation::none,
                   .layer_norm_eps = c.number("layer_norm_eps", 1e-5)};
  std::string act = c.string("hidden_act", "quick_gelu");
  c.finish();
  check<ConfigError>(act == "gelu" || act == "quick_gelu", "config key '", c.path(),
                     ".hidden_act' must be 'gelu' or 'quick_gelu' but is '", act, "'");
  t.hidden_act = act == "gelu" ? Activation::gelu : Activation::quick_gelu;
  check<ConfigError>(t.hidden_size % t.num_attention_heads == 0, "config '", c.path(), "': hidden_size ", t.hidden_size,
                     " cannot be split into ", t.num_attention_heads, " heads");
  return t;
}

// Standard deviations of the CLIP paper: branches that end in a residual shrink with the depth.
ClipText::Layer::Layer(const Scope& s, const ClipTextConfig& c)
    : layer_norm1(s / "layer_norm1", c.hidden_size, c.layer_norm_eps),
      layer_norm2(s / "layer_norm2", c.hidden_size, c.layer_norm_eps) {
  double in_std = 1 / std::sqrt(double(c.hidden_size)), out_std = in_std / std::sqrt(2 * double(c.num_hidden_layers));
  auto make = [&](const Scope& at, int64_t in, int64_t out, double std) {
    return Linear(at, in, out, true, Init::normal(std), Init::zeros());
  };
  q_proj = make(s / "self_attn" / "q_proj", c.hidden_size, c.hidden_size, in_std);
  k_proj = make(s / "self_attn" / "k_proj", c.hidden_size, c.hidden_size, in_std);
  v_proj = make(s / "self_attn" / "v_proj", c.hidden_size, c.hidden_size, in_std);
  out_proj = make(s / "self_attn" / "out_proj", c.hidden_size, c.hidden_size, out_std);
  fc1 = make(s / "mlp" / "fc1", c.hidden_size, c.intermediate_size, in_std / std::sqrt(2.0));
  fc2 = make(s / "mlp" / "fc2", c.intermediate_size, c.hidden_size, out_std);
}

ClipText::ClipText(const Scope& s, const ClipTextConfig& c)
    : config(c),
      token_embedding((s / "text_model" / "embeddings" / "token_embedding")
                          .param("weight", {c.vocab_size, c.hidden_size}, Init::normal(0.02))),
      position_embedding((s / "text_model" / "embeddings" / "position_embedding")
                             .param("weight", {c.max_position_embeddings, c.hidden_size}, Init::normal(0.01))) {
  for (int64_t i = 0; i < c.num_hidden_layers; i++) layers.emplace_back(s / "text_model" / "encoder" / "layers" / i, c);
  final_layer_norm = LayerNorm(s / "text_model" / "final_layer_norm", c.hidden_size, c.layer_norm_eps);
}

Tensor ClipText::operator()(const Tensor& ids) const {
  check<ShapeError>(ids.ndim() == 2, "[clip_text] input_ids must be [B, T] but have shape ", ids.shape());
  int64_t batch = ids.size(0), length = ids.size(1), width = config.hidden_size, heads = config.num_attention_heads;
  check<ShapeError>(length <= config.max_position_embeddings, "[clip_text] at most ", config.max_position_embeddings,
                    " ids fit but got ", length);
  auto split = [&](const Tensor& t) { return reshape(t, {batch, length, heads, width / heads}); };
  Tensor x = add(embedding(token_embedding, ids), slice(position_embedding, 0, 0, length));
  for (const Layer& l : layers) {
    Tensor h = l.layer_norm1(x);
    Tensor y = attention(split(l.q_proj(h)), split(l.k_proj(h)), split(l.v_proj(h)), {}, {.causal = true});
    x = l.out_proj.added_to(x, reshape(y, {batch, length, width}));
    x = l.fc2.added_to(x, l.fc1(l.layer_norm2(x), config.hidden_act));
  }
  return final_layer_norm(x);
}

namespace {

class ClipTextModel : public Model {
 public:
  ClipTextModel(const Json& config, const BuildOptions& build)
      : Model(build), encoder_(Scope(params), ClipTextConfig::read(Config(config, "clip_text"))) {}

  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    if (method != "forward") unknown_method("clip_text", method);
    Config(options, "clip_text.forward").finish();
    return {{"last_hidden_state", encoder_(input(inputs, "input_ids"))}};
  }

 private:
  ClipText encoder_;
};

}  // namespace

static const RegisterModel r{"clip_text", [](const Json& config, const BuildOptions& build) -> std::unique_ptr<Model> {
                               return std::make_unique<ClipTextModel>(config, build);
                             }};

}  // namespace deem
