#include "models/perceiver.h"

#include <cmath>

namespace deem {

PerceiverConfig PerceiverConfig::read(const Config& c) {
  PerceiverConfig p{.num_queries = c.positive("num_queries", 32),
                    .hidden_size = c.positive("hidden_size", 768),
                    .encoder_hidden_size = c.positive("encoder_hidden_size", 1408),
                    .intermediate_size = c.positive("intermediate_size", 3072),
                    .num_hidden_layers = c.positive("num_hidden_layers", 12),
                    .num_attention_heads = c.positive("num_attention_heads", 12),
                    .cross_attention_frequency = c.positive("cross_attention_frequency", 2),
                    .qk_normalization = c.boolean("qk_normalization", false),
                    .layer_norm_eps = c.number("layer_norm_eps", 1e-12),
                    .hidden_dropout_prob = c.number("hidden_dropout_prob", 0.1),
                    .attention_probs_dropout_prob = c.number("attention_probs_dropout_prob", 0.1)};
  c.finish();
  check<ConfigError>(p.hidden_size % p.num_attention_heads == 0, "config '", c.path(), "': hidden_size ", p.hidden_size,
                     " cannot be split into ", p.num_attention_heads, " heads");
  for (auto [key, v] : {std::pair{"hidden_dropout_prob", p.hidden_dropout_prob},
                        std::pair{"attention_probs_dropout_prob", p.attention_probs_dropout_prob}})
    check<ConfigError>(v >= 0 && v < 1, "config key '", c.path(), ".", key, "' must be in [0, 1) but is ", v);
  return p;
}

// Uniform with the variance of BERT's normal(0.02) at width 768, and the same gain at any other.
static Linear dense_layer(const Scope& s, int64_t in, int64_t out) {
  return Linear(s, in, out, true, Init::uniform(1 / std::sqrt(double(in))), Init::zeros());
}

Perceiver::Attention::Attention(const Scope& s, const PerceiverConfig& c, int64_t context_width)
    : query(dense_layer(s / "attention" / "query", c.hidden_size, c.hidden_size)),
      key(dense_layer(s / "attention" / "key", context_width, c.hidden_size)),
      value(dense_layer(s / "attention" / "value", context_width, c.hidden_size)) {
  if (c.qk_normalization) {
    int64_t head_size = c.hidden_size / c.num_attention_heads;
    q_norm.emplace(s / "attention" / "q_norm", head_size, c.layer_norm_eps);
    k_norm.emplace(s / "attention" / "k_norm", head_size, c.layer_norm_eps);
  }
  dense = dense_layer(s / "output" / "dense", c.hidden_size, c.hidden_size);
  norm = LayerNorm(s / "output" / "LayerNorm", c.hidden_size, c.layer_norm_eps);
}

Perceiver::Layer::Layer(const Scope& s, const PerceiverConfig& c, bool with_cross)
    : self(s / "attention", c, c.hidden_size) {
  if (with_cross) cross.emplace(s / "crossattention", c, c.encoder_hidden_size);
  intermediate = dense_layer(s / "intermediate_query" / "dense", c.hidden_size, c.intermediate_size);
  output = dense_layer(s / "output_query" / "dense", c.intermediate_size, c.hidden_size);
  norm = LayerNorm(s / "output_query" / "LayerNorm", c.hidden_size, c.layer_norm_eps);
}

Perceiver::Perceiver(const Scope& s, const PerceiverConfig& c)
    : config(c), layernorm(s / "blip2qformer" / "layernorm", c.hidden_size, c.layer_norm_eps) {
  for (int64_t i = 0; i < c.num_hidden_layers; i++)
    layers.emplace_back(s / "blip2qformer" / "encoder" / "layer" / i, c, i % c.cross_attention_frequency == 0);
  queries = s.param("queries", {1, c.num_queries, c.hidden_size}, Init::normal(0.02));
}

Tensor Perceiver::hidden_dropout(const Tensor& x, Mode mode) const {
  return mode.training ? dropout(x, config.hidden_dropout_prob) : x;
}

// The fused operation keeps no probabilities to drop from, so training with dropout takes the plain formula.
static Tensor attention_with_dropout(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& keep,
                                     double p) {
  auto heads_first = [](const Tensor& x) { return permute(x, {0, 2, 1, 3}); };
  Shape wide{k.size(0), q.size(2), q.size(1), q.size(3)};
  Tensor scores = mul_scalar(matmul(broadcast_to(heads_first(q), wide), heads_first(k), false, true),
                             1 / std::sqrt(double(q.size(3))));
  if (keep) {
    // Finite in every dtype: a row that sees nothing becomes the mean, as in attention().
    Tensor seen = reshape(cast(*keep, DType::u8).to(scores.device()), {k.size(0), 1, 1, k.size(1)});
    scores = where(seen, scores, Tensor::full({1}, -6e4, scores.dtype(), scores.device()));
  }
  return heads_first(matmul(dropout(softmax(scores), p), heads_first(v)));
}

Tensor Perceiver::attend(const Attention& a, const Tensor& x, const Tensor& context, const MaybeTensor& keep,
                         Mode mode) const {
  auto split = [&](const Tensor& t) {
    return reshape(t,
                   {t.size(0), t.size(1), config.num_attention_heads, config.hidden_size / config.num_attention_heads});
  };
  Tensor q = split(a.query(x)), v = split(a.value(context)), k;
  if (a.q_norm) q = (*a.q_norm)(q);
  // Softmax cannot see what is added to all keys of a head alike. Taken times zero, the last bias before the scores has the
  // gradient of exact arithmetic, zero, instead of rounding noise that Adam would blow up.
  if (a.k_norm) {
    k = layer_norm(split(a.key(context)), a.k_norm->weight, mul_scalar(a.k_norm->bias, 0), a.k_norm->eps);
  } else {
    k = split(linear(context, a.key.weight, mul_scalar(*a.key.bias, 0)));
  }
  double p = mode.training ? config.attention_probs_dropout_prob : 0;
  Tensor y = p > 0 ? attention_with_dropout(q, k, v, keep, p) : attention(q, k, v, keep);
  y = hidden_dropout(a.dense(reshape(y, {y.size(0), y.size(1), config.hidden_size})), mode);
  return a.norm(add(y, x));
}

Tensor Perceiver::operator()(const Tensor& context, const MaybeTensor& context_mask, Mode mode) const {
  check<ShapeError>(context.ndim() == 3 && context.size(2) == config.encoder_hidden_size,
                    "[perceiver] context must be [B, tokens, ", config.encoder_hidden_size, "] but has shape ",
                    context.shape());
  if (context_mask)
    check<ShapeError>(context_mask->shape() == Shape{context.size(0), context.size(1)},
                      "[perceiver] context_mask must be [", context.size(0), ", ", context.size(1), "] but has shape ",
                      context_mask->shape());
  // The queries are one row until the first cross attention brings in the batch.
  Tensor x = hidden_dropout(layernorm(queries), mode);
  for (const Layer& layer : layers) {
    x = attend(layer.self, x, x, {}, mode);
    if (layer.cross) x = attend(*layer.cross, x, context, context_mask, mode);
    x = layer.norm(add(hidden_dropout(layer.output(layer.intermediate(x, Activation::gelu)), mode), x));
  }
  return x;
}

namespace {

class PerceiverModel : public Model {
 public:
  PerceiverModel(const Json& config, const BuildOptions& build)
      : Model(build), perceiver_(Scope(params), PerceiverConfig::read(Config(config, "perceiver"))) {}

  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    if (method != "forward") unknown_method("perceiver", method);
    Config o(options, "perceiver.forward");
    Mode mode{o.boolean("training", false)};
    o.finish();
    return {{"y", perceiver_(input(inputs, "context"), optional_input(inputs, "context_mask"), mode)}};
  }

 private:
  Perceiver perceiver_;
};

}  // namespace

static const RegisterModel r{"perceiver", [](const Json& config, const BuildOptions& build) -> std::unique_ptr<Model> {
                               return std::make_unique<PerceiverModel>(config, build);
                             }};

}  // namespace deem
