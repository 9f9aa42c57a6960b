#include "models/module.h"

#include <algorithm>
#include <cmath>

#include "core/safetensors.h"

namespace deem {

// ---- parameters --------------------------------------------------------------------------------------------------------

Quantization Quantization::read(const Json& json) {
  Config c(json, "quantization");
  Quantization q;
  q.format.bits = c.integer("bits");
  q.format.group = c.integer("group", 32);
  q.format.symmetric = c.boolean("symmetric", true);
  q.include = c.strings("include", std::vector<std::string>{"*.self_attn.*_proj.weight", "*.mlp.*_proj.weight"});
  c.finish();
  q.format.validate();
  return q;
}

// Greedy with one step back: * may stand for anything, also for nothing.
static bool matches(std::string_view pattern, std::string_view name) {
  size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') star = p++, resume = n;
    else if (p < pattern.size() && pattern[p] == name[n]) p++, n++;
    else if (star != std::string_view::npos) p = star + 1, n = ++resume;
    else return false;
  }
  while (p < pattern.size() && pattern[p] == '*') p++;
  return p == pattern.size();
}

bool Quantization::covers(const std::string& name) const {
  return std::any_of(include.begin(), include.end(), [&](const std::string& p) { return matches(p, name); });
}

Tensor ParameterStore::start(const Shape& shape, const Init& init, uint64_t stream) const {
  if (init.kind == Init::Kind::constant) return Tensor::full(shape, init.a);
  if (init.kind == Init::Kind::table) return init.table();
  const bool normal = init.kind == Init::Kind::normal;
  Tensor t =
      normal ? randn(shape, int64_t(build_.seed), int64_t(stream)) : rand(shape, int64_t(build_.seed), int64_t(stream));
  std::span<float> values = t.values<float>();  // in place: building needs no more than one tensor beside the model
  if (normal)
    for (float& v : values) v *= float(init.a);
  else
    for (float& v : values) v = (v - 0.5f) * float(2 * init.a);
  if (!shape.empty() && init.rows < shape[0])
    for (float& v : values.subspan(size_t(init.rows * (t.numel() / shape[0])))) v = 0;
  return t;
}

Tensor ParameterStore::add(const std::string& name, const Shape& shape, const Init& init, Role role) {
  check<ConfigError>(!index_.contains(name), "parameter '", name, "' is registered twice");
  const bool random = init.kind == Init::Kind::normal || init.kind == Init::Kind::uniform;
  std::optional<Init> undrawn;
  if (random && !build_.draw) undrawn = init;
  Tensor t;
  if (!undrawn) {
    t = start(shape, init, list_.size());
    check<ShapeError>(t.shape() == shape, "parameter '", name, "' starts with shape ", t.shape(), " instead of ",
                      shape);
  }
  if (role == Role::linear && build_.quantization.covers(name)) {
    QuantFormat format = build_.quantization.format;
    format.cols = shape[1];
    Tensor codes = t ? quantize(t, format.bits, format.group, format.symmetric).to(build_.device)
                     : Tensor::empty({shape[0], format.row_bytes()}, DType::u8, build_.device);
    Tensor stand_in = Tensor::from_quantized(std::make_shared<QuantizedWeight>(codes, format), shape, dtype());
    std::string stored = name + "." + format.suffix();
    index_[stored] = list_.size();
    list_.push_back({stored, codes, false, false, true, false, stand_in, undrawn});
    return stand_in;
  }
  t = t ? cast(t, dtype()).to(build_.device) : Tensor::empty(shape, dtype(), build_.device);
  if (role != Role::buffer) t.set_requires_grad(true);
  index_[name] = list_.size();
  list_.push_back(
      {name, t, role == Role::conv, role == Role::norm, role == Role::buffer, role == Role::linear, {}, undrawn});
  return t;
}

void ParameterStore::draw(const std::string& name) {
  Parameter& p = at(name);
  if (!p.undrawn) return;
  Tensor t = start((p.quantized ? p.quantized : p.value).shape(), *p.undrawn, uint64_t(&p - list_.data()));
  if (p.quantized) {
    const QuantFormat& f = p.quantized.impl()->quantized->format;
    t = quantize(t, f.bits, f.group, f.symmetric);
  } else {
    t = cast(t, p.value.dtype());
  }
  p.value.overwrite(t);
  p.value.sync_master();
  p.undrawn.reset();
}

Parameter* ParameterStore::find_quantized(const std::string& name) {
  QuantFormat format = build_.quantization.format;
  Parameter* p = build_.quantization.covers(name) ? find(name + "." + format.suffix()) : nullptr;
  return p && p->quantized ? p : nullptr;
}

void ParameterStore::check_quantization() const {
  const auto& include = build_.quantization.include;
  for (const std::string& pattern : include)
    check<ConfigError>(std::any_of(list_.begin(), list_.end(),
                                   [&](const Parameter& p) {
                                     return p.quantized &&
                                            matches(pattern + "." + build_.quantization.format.suffix(), p.name);
                                   }),
                       "config 'quantization.include': no weight of a linear layer is called '", pattern, "'");
}

void ParameterStore::alias(const std::string& name, const std::string& target) {
  check<ConfigError>(index_.contains(target) && !index_.contains(name), "alias '", name, "' of '", target,
                     "' is not possible");
  index_[name] = index_[target];
  aliases_.push_back({name, target});
}

Parameter* ParameterStore::find(const std::string& name) {
  auto it = index_.find(name);
  return it == index_.end() ? nullptr : &list_[it->second];
}

Parameter& ParameterStore::at(const std::string& name) {
  if (Parameter* p = find(name)) return *p;
  std::vector<std::string> known;
  for (auto& [key, unused] : index_) known.push_back(key);
  throw WeightsError("there is no parameter '" + name + "'; the nearest name is '" + nearest_name(name, known) + "'");
}

Tensor ParameterStore::published(const Parameter& p, const Tensor& t) {
  return p.conv ? permute(t.detach(), {0, 3, 1, 2}) : t.detach();
}

void ParameterStore::assign(const std::string& name, const Tensor& published_value, bool leading) {
  Tensor v = published_value.detach();
  if (Parameter* q = find_quantized(name)) {
    const QuantFormat& f = q->quantized.impl()->quantized->format;
    check<WeightsError>(v.shape() == q->quantized.shape(), "parameter '", name, "' has shape ", q->quantized.shape(),
                        " but the weight given has ", v.shape());
    check<WeightsError>(is_float(v.dtype()), "parameter '", name, "' is floating but the weight given is ", v.dtype());
    Tensor codes = quantize(v, f.bits, f.group, f.symmetric);
    q->value.overwrite(codes);
    q->undrawn.reset();
    return;
  }
  Parameter& p = at(name);
  Shape want = published(p, p.value).shape();
  if (leading && want.size() > 0 && v.ndim() > 0 && v.size(0) < want[0]) want[0] = v.size(0);
  check<WeightsError>(v.shape() == want, "parameter '", p.name, "' has shape ", want, " but the weight given has ",
                      v.shape());
  if (p.quantized) {
    check<WeightsError>(v.dtype() == DType::u8, "parameter '", p.name, "' holds codes, u8, but the weight given is ",
                        v.dtype());
    p.value.overwrite(contiguous(v));
    p.undrawn.reset();
    return;
  }
  check<WeightsError>(is_float(v.dtype()), "parameter '", p.name, "' is floating but the weight given is ", v.dtype());
  if (p.conv) v = permute(v, {0, 2, 3, 1});
  p.value.overwrite(contiguous(cast_weights(v, p.value.dtype(), "parameter '" + p.name + "'")));
  p.undrawn.reset();
  if (Tensor master = p.value.master()) {
    // Values of the parameter's own dtype say nothing new where they are what the master rounds to.
    if (v.dtype() == p.value.dtype()) return p.value.sync_master();
    master.overwrite(contiguous(cast(v, DType::f32)));
  }
}

Tensor ParameterStore::stored(const Parameter& p, DType dtype) {
  Tensor master = p.value.master();
  return published(p, master && dtype != p.value.dtype() ? master : p.value);
}

// ---- layers ------------------------------------------------------------------------------------------------------------

Linear::Linear(const Scope& s, int64_t in, int64_t out, bool with_bias)
    : Linear(s, in, out, with_bias, Init::uniform(1 / std::sqrt(double(in))),
             Init::uniform(1 / std::sqrt(double(in)))) {}

Linear::Linear(const Scope& s, int64_t in, int64_t out, bool with_bias, const Init& weight_init, const Init& bias_init)
    : weight(s.linear_weight("weight", {out, in}, weight_init)) {
  if (with_bias) bias = s.param("bias", {out}, bias_init);
}

static double conv_bound(int64_t in, int64_t kernel, int64_t groups) {
  return 1 / std::sqrt(double(in / groups * kernel * kernel));
}

Conv2d::Conv2d(const Scope& s, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding, int64_t groups)
    : Conv2d(s, in, out, kernel, Conv2dOptions{stride, padding, padding, padding, padding, groups},
             Init::uniform(conv_bound(in, kernel, groups))) {}

Conv2d::Conv2d(const Scope& s, int64_t in, int64_t out, int64_t kernel, const Conv2dOptions& options,
               const Init& weight_init)
    : weight(s.conv_weight("weight", {out, kernel, kernel, in / options.groups}, weight_init)),
      bias(s.param("bias", {out},
                   weight_init.kind == Init::Kind::uniform ? Init::uniform(conv_bound(in, kernel, options.groups))
                                                           : Init::zeros())),
      options(options) {}

LayerNorm::LayerNorm(const Scope& s, int64_t width, double eps)
    : weight(s.norm_param("weight", {width}, Init::ones())),
      bias(s.norm_param("bias", {width}, Init::zeros())),
      eps(eps) {}

RmsNorm::RmsNorm(const Scope& s, int64_t width, double eps)
    : weight(s.param("weight", {width}, Init::ones())), eps(eps) {}

GroupNorm::GroupNorm(const Scope& s, int64_t channels, int64_t groups, double eps)
    : weight(s.param("weight", {channels}, Init::ones())),
      bias(s.param("bias", {channels}, Init::zeros())),
      groups(groups),
      eps(eps) {
  check<ConfigError>(groups > 0 && channels % groups == 0, "group norm: ", channels, " channels cannot be split into ",
                     groups, " groups");
}

// ---- configuration -----------------------------------------------------------------------------------------------------

Config::Config(const Json& json, std::string path)
    : json_(&json), path_(std::move(path)), asked_(std::make_shared<std::vector<std::string>>()) {
  check<ConfigError>(json.is_object(), "config '", path_, "' must be an object");
}

const Json* Config::find(const std::string& key, bool required) const {
  asked_->push_back(key);
  auto it = json_->find(key);
  if (it != json_->end() && !it->is_null()) return &*it;
  check<ConfigError>(!required, "config '", path_, "' lacks the key '", key, "'");
  return nullptr;
}

template <class T>
static T typed(const Json& v, bool ok, const std::string& path, const std::string& key, const char* type) {
  check<ConfigError>(ok, "config key '", path, ".", key, "' must be ", type, " but is ", v.dump());
  return v.get<T>();
}

int64_t Config::integer(const std::string& key, std::optional<int64_t> fallback) const {
  const Json* v = find(key, !fallback);
  return v ? typed<int64_t>(*v, v->is_number_integer(), path_, key, "an integer") : *fallback;
}

int64_t Config::positive(const std::string& key, std::optional<int64_t> fallback) const {
  int64_t v = integer(key, fallback);
  check<ConfigError>(v >= 1, "config key '", path_, ".", key, "' must be at least 1 but is ", v);
  return v;
}

double Config::number(const std::string& key, std::optional<double> fallback) const {
  const Json* v = find(key, !fallback);
  return v ? typed<double>(*v, v->is_number(), path_, key, "a number") : *fallback;
}

bool Config::boolean(const std::string& key, std::optional<bool> fallback) const {
  const Json* v = find(key, !fallback);
  return v ? typed<bool>(*v, v->is_boolean(), path_, key, "true or false") : *fallback;
}

std::string Config::string(const std::string& key, std::optional<std::string> fallback) const {
  const Json* v = find(key, !fallback);
  return v ? typed<std::string>(*v, v->is_string(), path_, key, "a string") : *fallback;
}

std::vector<int64_t> Config::integers(const std::string& key, std::optional<std::vector<int64_t>> fallback) const {
  const Json* v = find(key, !fallback);
  if (!v) return *fallback;
  bool ok = v->is_array() && std::all_of(v->begin(), v->end(), [](const Json& e) { return e.is_number_integer(); });
  return typed<std::vector<int64_t>>(*v, ok, path_, key, "an array of integers");
}

std::vector<std::string> Config::strings(const std::string& key,
                                         std::optional<std::vector<std::string>> fallback) const {
  const Json* v = find(key, !fallback);
  if (!v) return *fallback;
  bool ok = v->is_array() && std::all_of(v->begin(), v->end(), [](const Json& e) { return e.is_string(); });
  return typed<std::vector<std::string>>(*v, ok, path_, key, "an array of strings");
}

std::vector<double> Config::numbers(const std::string& key, std::optional<std::vector<double>> fallback) const {
  const Json* v = find(key, !fallback);
  if (!v) return *fallback;
  bool ok = v->is_array() && std::all_of(v->begin(), v->end(), [](const Json& e) { return e.is_number(); });
  return typed<std::vector<double>>(*v, ok, path_, key, "an array of numbers");
}

std::vector<std::vector<int64_t>> Config::id_lists(const std::string& key) const {
  const Json* v = find(key, false);
  if (!v) return {};
  auto whole = [](const Json& e) { return e.is_number_integer(); };
  bool ok = v->is_array() && std::all_of(v->begin(), v->end(), [&](const Json& row) {
              return row.is_array() && std::all_of(row.begin(), row.end(), whole);
            });
  return typed<std::vector<std::vector<int64_t>>>(*v, ok, path_, key, "an array of arrays of integers");
}

Config Config::child(const std::string& key) const { return Config(*find(key, true), path_ + "." + key); }
bool Config::has(const std::string& key) const { return find(key, false) != nullptr; }
void Config::ignore(const std::string& key) const { asked_->push_back(key); }

void Config::finish() const {
  for (auto& [key, unused] : json_->items())
    check<ConfigError>(std::find(asked_->begin(), asked_->end(), key) != asked_->end(), "unknown config key '", path_,
                       ".", key, "'; the nearest known key is '", nearest_name(key, *asked_), "'");
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = SIZE_MAX;
  for (const std::string& k : known) {
    std::vector<size_t> row(k.size() + 1);
    for (size_t j = 0; j <= k.size(); j++) row[j] = j;
    for (size_t i = 1; i <= name.size(); i++) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= k.size(); j++) {
        size_t next = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (name[i - 1] != k[j - 1])});
        diagonal = row[j];
        row[j] = next;
      }
    }
    if (row.back() < best_distance) best_distance = row.back(), best = k;
  }
  return best;
}

// ---- models ------------------------------------------------------------------------------------------------------------

TensorMap placed(const ParameterStore& params, const TensorMap& inputs) {
  if (params.list().empty()) return inputs;
  Device device = params.list().front().value.device();
  TensorMap out;
  for (auto& [name, t] : inputs) out.emplace(name, to_device(t, is_float(t.dtype()) ? device : Device::cpu));
  return out;
}

const Tensor& input(const TensorMap& inputs, const std::string& name) {
  auto it = inputs.find(name);
  if (it != inputs.end()) return it->second;
  std::vector<std::string> given;
  for (auto& [key, unused] : inputs) given.push_back(key);
  throw ValueError("the input tensor '" + name + "' is missing" +
                   (given.empty() ? "" : "; the nearest name given is '" + nearest_name(name, given) + "'"));
}

MaybeTensor optional_input(const TensorMap& inputs, const std::string& name) {
  auto it = inputs.find(name);
  return it == inputs.end() ? MaybeTensor() : MaybeTensor(it->second);
}

std::unique_ptr<Model> Model::open(const std::string& kind, const TensorMap&, const Json&,
                                   const std::shared_ptr<Model>&) {
  throw ValueError("this model has no sessions of kind '" + kind + "'");
}

void unknown_method(const std::string& model, const std::string& method) {
  throw ValueError("model '" + model + "' has no method '" + method + "'");
}

std::map<std::string, ModelFactory>& model_registry() {
  static auto* registry = new std::map<std::string, ModelFactory>;
  return *registry;
}

std::unique_ptr<Model> create_model(const std::string& kind, Json config, uint64_t seed, DType dtype, Device device,
                                    bool draw) {
  auto it = model_registry().find(kind);
  if (it == model_registry().end()) {
    std::vector<std::string> known;
    for (auto& [key, unused] : model_registry()) known.push_back(key);
    throw ConfigError("unknown model '" + kind + "'; the nearest known one is '" + nearest_name(kind, known) + "'");
  }
  check<DTypeError>(is_float(dtype), "a model's dtype must be floating but is ", dtype);
  BuildOptions build{.seed = seed, .dtype = dtype, .quantization = {}, .device = device, .draw = draw};
  if (config.is_object() && config.contains("quantization")) {
    if (!config["quantization"].is_null()) build.quantization = Quantization::read(config["quantization"]);
    config.erase("quantization");
  }
  auto model = it->second(config, build);
  model->params.check_quantization();
  return model;
}

}  // namespace deem
