#include "models/llama.h"

#include <algorithm>

namespace deem {

// ---- configuration -----------------------------------------------------------------------------------------------------

static LlamaConfig read_language(const Config& c) {
  LlamaConfig l{};
  l.hidden_size = c.positive("hidden_size");
  l.num_attention_heads = c.positive("num_attention_heads");
  l.num_key_value_heads = c.positive("num_key_value_heads", l.num_attention_heads);
  l.intermediate_size = c.positive("intermediate_size");
  l.num_hidden_layers = c.positive("num_hidden_layers");
  l.vocab_size = c.positive("vocab_size");
  l.rms_norm_eps = c.number("rms_norm_eps");
  l.max_position_embeddings = c.positive("max_position_embeddings");
  l.rope_theta = c.number("rope_theta", 10000);
  l.mmfs_heads = c.positive("mmfs_heads", 16);
  l.mmfs_points = c.positive("mmfs_points", 8);
  l.mmfs_base_side = c.number("mmfs_base_side", 16);
  l.mmfs_max_images = c.positive("mmfs_max_images", 50);
  return l;
}

static LlamaConfig checked(const LlamaConfig& l, const Config& c) {
  c.finish();
  check<ConfigError>(l.hidden_size % (2 * l.num_attention_heads) == 0, "config '", c.path(), "': hidden_size ",
                     l.hidden_size, " cannot be split into ", l.num_attention_heads, " heads of an even size");
  check<ConfigError>(l.num_attention_heads % l.num_key_value_heads == 0, "config '", c.path(),
                     "': ", l.num_attention_heads, " heads cannot share ", l.num_key_value_heads,
                     " heads of keys and values");
  check<ConfigError>(l.image_embed_dim >= 1 && l.cross_attention_frequency >= 1, "config '", c.path(),
                     "': image_embed_dim and cross_attention_frequency must be at least 1 but are ", l.image_embed_dim,
                     " and ", l.cross_attention_frequency);
  return l;
}

LlamaConfig LlamaConfig::read(const Config& c) {
  LlamaConfig l = read_language(c);
  l.image_embed_dim = c.integer("image_embed_dim");
  l.cross_attention_frequency = c.integer("cross_attention_frequency");
  l.spatial_shapes = c.integers("spatial_shapes");
  return checked(l, c);
}

LlamaConfig LlamaConfig::read(const Config& c, int64_t image_embed_dim, int64_t cross_attention_frequency,
                              const std::vector<int64_t>& spatial_shapes) {
  LlamaConfig l = read_language(c);
  l.image_embed_dim = image_embed_dim;
  l.cross_attention_frequency = cross_attention_frequency;
  l.spatial_shapes = spatial_shapes;
  return checked(l, c);
}

// ---- layers ------------------------------------------------------------------------------------------------------------

Llama::Layer::Cross::Cross(const Scope& s, const LlamaConfig& c)
    : gate(s.param("gate", {1}, Init::zeros())),
      attn(s / "attn", MmfsConfig{.d_query = c.hidden_size,
                                  .d_value = c.image_embed_dim,
                                  .d_out = c.hidden_size,
                                  .value_width = c.image_embed_dim,
                                  .heads = c.mmfs_heads,
                                  .points = c.mmfs_points,
                                  .level_sides = c.spatial_shapes,
                                  .base_side = c.mmfs_base_side,
                                  .max_images = c.mmfs_max_images,
                                  .trains_ignore_token = true}),
      norm1(s / "norm1", c.hidden_size, c.rms_norm_eps),
      norm2(s / "norm2", c.image_embed_dim, c.rms_norm_eps) {}

Llama::Layer::Layer(const Scope& s, const LlamaConfig& c, bool with_cross)
    : input_norm(s / "input_layernorm", c.hidden_size, c.rms_norm_eps),
      post_attention_norm(s / "post_attention_layernorm", c.hidden_size, c.rms_norm_eps) {
  auto make = [&](const Scope& at, int64_t in, int64_t out) {
    return Linear(at, in, out, false, Init::normal(0.02), {});
  };
  int64_t width = c.hidden_size, shared = width / c.num_attention_heads * c.num_key_value_heads;
  q_proj = make(s / "self_attn" / "q_proj", width, width);
  k_proj = make(s / "self_attn" / "k_proj", width, shared);
  v_proj = make(s / "self_attn" / "v_proj", width, shared);
  o_proj = make(s / "self_attn" / "o_proj", width, width);
  if (with_cross) cross.emplace(s / "llama_cross_attn", c);
  gate_proj = make(s / "mlp" / "gate_proj", width, c.intermediate_size);
  up_proj = make(s / "mlp" / "up_proj", width, c.intermediate_size);
  down_proj = make(s / "mlp" / "down_proj", c.intermediate_size, width);
}

bool Llama::Layer::trains() const {
  Tensors all{input_norm.weight, post_attention_norm.weight, q_proj.weight,  k_proj.weight,   v_proj.weight,
              o_proj.weight,     gate_proj.weight,           up_proj.weight, down_proj.weight};
  if (cross) {
    const Mmfs& m = cross->attn;
    all.insert(all.end(), {cross->gate, cross->norm1.weight, cross->norm2.weight, m.ignore_token, m.query_relpos});
    for (const Linear* l :
         {&m.sampling_offsets, &m.dynamic_offset_mask, &m.attention_weights, &m.value_proj, &m.output_proj})
      all.insert(all.end(), {l->weight, *l->bias});
  }
  return std::any_of(all.begin(), all.end(), [](const Tensor& t) { return t.requires_grad(); });
}

Llama::Llama(const Scope& s, const LlamaConfig& c)
    : config(c), embed_tokens((s / "embed_tokens").param("weight", {c.vocab_size, c.hidden_size}, Init::normal(0.02))) {
  for (int64_t i = 0; i < c.num_hidden_layers; i++)
    layers.emplace_back(s / "layers" / i, c, i % c.cross_attention_frequency == 0);
  norm = RmsNorm(s / "norm", c.hidden_size, c.rms_norm_eps);
}

// ---- forward -----------------------------------------------------------------------------------------------------------

namespace {

// What all layers of one pass share.
struct Pass {
  Tensor turns;  // of rope_by()
  Tensor plan;   // of planned_attention()
  Tensor relative, centre;
  LevelShapes levels;
};

// How one layer reaches the state.
struct LayerState {
  std::function<std::pair<Tensor, Tensor>(const Tensor& k, const Tensor& v)> extend;
  Tensor& image_value;
};

}  // namespace

// residual + what the layer's attention makes of x
static Tensor add_self_attention(const Tensor& residual, const Llama::Layer& l, const LlamaConfig& c, const Tensor& x,
                                 const Pass& pass, LayerState* state) {
  int64_t batch = x.size(0), length = x.size(1), head_size = c.hidden_size / c.num_attention_heads;
  auto split = [&](const Tensor& t, int64_t heads) { return reshape(t, {batch, length, heads, head_size}); };
  Tensor q = rope_by(split(l.q_proj(x), c.num_attention_heads), pass.turns);
  Tensor k = rope_by(split(l.k_proj(x), c.num_key_value_heads), pass.turns);
  Tensor v = split(l.v_proj(x), c.num_key_value_heads);
  if (state) std::tie(k, v) = state->extend(k, v);
  return l.o_proj.added_to(residual, reshape(planned_attention(q, k, v, pass.plan), {batch, length, c.hidden_size}));
}

// features: of images that the state does not know yet, or undefined.
static Tensor run_layer(const Llama::Layer& l, const LlamaConfig& c, Tensor x, const Tensor& features, const Pass& pass,
                        LayerState* state) {
  x = add_self_attention(x, l, c, l.input_norm(x), pass, state);
  if (l.cross && pass.relative) {
    const Llama::Layer::Cross& cross = *l.cross;
    Tensor value = features ? cross.attn.project(cross.norm2(features)) : Tensor();
    if (state) {
      if (!value) value = state->image_value;
      else if (state->image_value) value = cat({state->image_value, value}, 1);
      state->image_value = value;
    }
    Tensor y = cross.attn.attend(cross.norm1(x), pass.centre, value, pass.levels, pass.relative);
    x = add(x, mul(y, tanh(cross.gate)));
  }
  Tensor h = l.post_attention_norm(x);
  return l.down_proj.added_to(x, mul(l.gate_proj(h, Activation::silu), l.up_proj(h)));
}

static Tensor counted_positions(int64_t batch, int64_t length, int64_t done) {
  Tensor t = Tensor::empty({batch, length}, DType::i64);
  int64_t* p = t.data<int64_t>();
  for (int64_t i = 0; i < batch * length; i++) p[i] = done + i % length;
  return t;
}

LlamaOutput Llama::forward(const Tensor& embeds, const MaybeTensor& keep, const MaybeTensor& features,
                           const MaybeTensor& image_mask, const MaybeTensor& positions, const LlamaOptions& options,
                           LlamaState* state) const {
  check<ShapeError>(embeds.ndim() == 3 && embeds.size(2) == config.hidden_size, "[llama] embeds must be [B, T, ",
                    config.hidden_size, "] but have shape ", embeds.shape());
  check<ValueError>(!(state && options.checkpoint), "[llama] checkpointing and a state exclude each other");
  int64_t batch = embeds.size(0), length = embeds.size(1), done = state ? state->length() : 0;
  check<ValueError>(done + length <= config.max_position_embeddings, "[llama] max_position_embeddings is ",
                    config.max_position_embeddings, " but the sequence has ", done + length, " positions");
  if (keep)
    check<ShapeError>(keep->shape() == Shape{batch, done + length}, "[llama] keep must be [", batch, ", ",
                      done + length, "] but has shape ", keep->shape());
  if (positions)
    check<ShapeError>(positions->shape() == Shape{batch, length}, "[llama] positions must be [", batch, ", ", length,
                      "] but have shape ", positions->shape());
  Tensors image_values(layers.size());  // of this call; the state takes them when all layers are through
  if (state) {
    state->layers_.resize(layers.size());
    if (!state->image_values_.empty()) image_values = state->image_values_;
  }

  Pass pass;
  pass.plan = attention_plan(keep, length, done + length, true, embeds.device());
  pass.turns = rope_table(positions ? *positions : counted_positions(batch, length, done),
                          config.hidden_size / config.num_attention_heads, config.rope_theta, embeds.device());
  bool images = features || (state && state->has_images());
  if (images) {
    check<ValueError>(image_mask.has_value(), "[llama] features need an image_mask");
    pass.relative = relative_index(*image_mask, length, config.mmfs_max_images);
    pass.centre = Tensor::full({1, 2}, 0.5, embeds.dtype(), embeds.device());
    for (int64_t side : config.spatial_shapes) pass.levels.push_back({side, side});
  }

  LlamaOutput out;
  Tensor x = embeds;
  for (size_t i = 0; i < layers.size(); i++) {
    if (options.hidden_states) out.layer_inputs.push_back(x);
    Tensor seen = features && layers[i].cross ? *features : Tensor();
    if (state) {
      LlamaState::Layer& own = state->layers_[i];
      LayerState here{[&](const Tensor& k, const Tensor& v) {
                        return std::pair{state->extend(own.keys, k), state->extend(own.values, v)};
                      },
                      image_values[i]};
      x = run_layer(layers[i], config, x, seen, pass, &here);
    } else if (options.checkpoint) {
      // By value: the graph may outlive the model.
      auto run = [layer = layers[i], config = config, pass](const Tensors& in) {
        return run_layer(layer, config, in[0], in[1], pass, nullptr);
      };
      x = checkpoint(run, {x, seen}, layers[i].trains());
    } else {
      x = run_layer(layers[i], config, x, seen, pass, nullptr);
    }
  }
  out.last_hidden = norm(x);
  if (state) {
    if (state->keeps_hidden_)
      state->extend(state->hidden_, reshape(out.last_hidden, {batch, length, 1, config.hidden_size}));
    if (features) state->version_++;
    state->image_values_ = std::move(image_values);
    state->length_ += length;
  }
  return out;
}

Tensor Llama::step(const Step& in, LlamaState& state) const {
  check<ValueError>(state.layers_.size() == layers.size() && state.length() < state.room(),
                    "[llama] the state has no room for a step");
  Pass pass{.turns = in.turns, .plan = in.plan, .relative = in.relative, .centre = {}, .levels = {}};
  if (in.relative) {
    pass.centre = Tensor::full({1, 2}, 0.5, in.embeds.dtype(), in.embeds.device());
    for (int64_t side : config.spatial_shapes) pass.levels.push_back({side, side});
  }
  Tensor x = in.embeds;
  for (size_t i = 0; i < layers.size(); i++) {
    LlamaState::Layer& own = state.layers_[i];
    Tensor seen = state.image_values_.empty() ? Tensor() : state.image_values_[i];
    LayerState here{[&](const Tensor& k, const Tensor& v) {
                      put_rows(own.keys, k, in.places);
                      put_rows(own.values, v, in.places);
                      return std::pair{own.keys, own.values};
                    },
                    seen};
    x = run_layer(layers[i], config, x, {}, pass, &here);
  }
  Tensor hidden = norm(x);
  if (state.keeps_hidden_) put_rows(state.hidden_, hidden, in.places);
  return hidden;
}

// ---- the model alone ---------------------------------------------------------------------------------------------------

namespace {

class LlamaModel : public Model {
 public:
  LlamaModel(const Json& config, const BuildOptions& build)
      : Model(build), llama_(Scope(params), LlamaConfig::read(Config(config, "llama"))) {}

  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    if (method == "forward") return forward(inputs, options);
    if (method != "embed") unknown_method("llama", method);
    Config(options, "llama.embed").finish();
    return {{"embeds", embedding(llama_.embed_tokens, input(inputs, "input_ids"))}};
  }

 private:
  // Keys and values are [B, H, T, D] outside.
  static Tensor swap_heads(const Tensor& t) { return contiguous(permute(t, {0, 2, 1, 3})); }

  TensorMap forward(const TensorMap& inputs, const Json& options) const {
    Config o(options, "llama.forward");
    bool use_cache = o.boolean("use_cache", false);
    LlamaOptions how{o.boolean("hidden_states", false), o.boolean("checkpoint", false)};
    o.finish();
    LlamaState state;
    bool has_past = inputs.contains("past_key.0");
    if (has_past) read_past(inputs, state);
    LlamaOutput y = llama_.forward(input(inputs, "embeds"), optional_input(inputs, "keep"),
                                   optional_input(inputs, "features"), optional_input(inputs, "image_mask"),
                                   optional_input(inputs, "positions"), how, use_cache || has_past ? &state : nullptr);
    TensorMap out{{"last_hidden", y.last_hidden}};
    for (size_t i = 0; i < y.layer_inputs.size(); i++) out["layer_in." + std::to_string(i)] = y.layer_inputs[i];
    for (size_t i = 0; use_cache && i < llama_.layers.size(); i++) {
      out["key." + std::to_string(i)] = swap_heads(state.keys(i));
      out["value." + std::to_string(i)] = swap_heads(state.values(i));
    }
    return out;
  }

  void read_past(const TensorMap& inputs, LlamaState& state) const {
    const LlamaConfig& c = llama_.config;
    for (size_t i = 0; i < llama_.layers.size(); i++) {
      auto past = [&](const char* kind) {
        std::string name = kind + std::to_string(i);
        const Tensor &t = input(inputs, name), &first = input(inputs, "past_key.0");
        check<ShapeError>(t.ndim() == 4 && t.size(1) == c.num_key_value_heads &&
                              t.size(3) == c.hidden_size / c.num_attention_heads && t.shape() == first.shape(),
                          "[llama] ", name, " must be [B, ", c.num_key_value_heads, ", T, ",
                          c.hidden_size / c.num_attention_heads, "] like the others but has shape ", t.shape());
        return permute(t, {0, 2, 1, 3});
      };
      state.put(i, past("past_key."), past("past_value."));
    }
  }

  Llama llama_;
};

}  // namespace

static const RegisterModel r{"llama", [](const Json& config, const BuildOptions& build) -> std::unique_ptr<Model> {
                               return std::make_unique<LlamaModel>(config, build);
                             }};

}  // namespace deem
