// What models are made of: named parameters, a scope that registers them, the few layers every model uses, and the
// registrar through which JavaScript creates models by name.
#pragma once
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

#include "ops.h"
#include "ops/quantized_linear.h"

namespace deem {

using Json = nlohmann::json;
using TensorMap = std::map<std::string, Tensor>;

// How a fresh parameter is filled. normal: N(0, a^2); uniform: U(-a, a).
struct Init {
  enum class Kind { constant, normal, uniform, table } kind = Kind::constant;
  double a = 0;
  std::function<Tensor()> table = nullptr;
  int64_t rows = std::numeric_limits<int64_t>::max();  // of what is drawn, the rest are zeros

  static Init zeros() { return {}; }
  static Init ones() { return constant(1); }
  static Init constant(double v) { return {Kind::constant, v}; }
  static Init normal(double std) { return {Kind::normal, std}; }
  static Init uniform(double bound) { return {Kind::uniform, bound}; }
  // N(0, gain^2 / inputs a value is summed over): with gain sqrt(2) the size of what passes stays (He et al. 2015)
  static Init scaled(double gain, int64_t fan_in) { return normal(gain / std::sqrt(double(fan_in))); }
  static Init from(std::function<Tensor()> f) { return {Kind::table, 0, std::move(f)}; }
  Init first_rows(int64_t n) const {
    Init i = *this;
    i.rows = n;
    return i;
  }
};

struct Parameter {
  std::string name;  // as in published checkpoints
  Tensor value;      // convolution weights are [O, KH, KW, I] here and OIHW in files
  bool conv = false;
  bool norm = false;    // sits directly in a LayerNorm: never decayed
  bool buffer = false;  // saved, never trained
  bool linear = false;  // the weight of a linear layer
  // Of a linear weight in few bits: the weight it stands for, which has no numbers of its own. The value holds its codes.
  Tensor quantized = {};
  std::optional<Init> undrawn = {};  // the value is not written yet: draw() or a weight gives it one
};

// Which weights of linear layers lie in few bits: those whose name matches one of the patterns, in which * stands for anything.
struct Quantization {
  QuantFormat format;
  std::vector<std::string> include;              // none: nothing
  static Quantization read(const Json& config);  // {bits, group, symmetric, include}; throws ConfigError
  bool covers(const std::string& name) const;
};

// What a model is built with beside its configuration.
struct BuildOptions {
  uint64_t seed = 0;
  DType dtype = DType::f32;
  Quantization quantization = {};
  Device device = Device::cpu;  // where the parameters lie; their starting values are the same bits everywhere
  bool draw = true;             // or what starts at random has no values yet: of models whose weights come from files
};

// All parameters of one model, in the order of their creation. Owned by the model and its root scope.
class ParameterStore {
 public:
  enum class Role { plain, linear, conv, norm, buffer };

  explicit ParameterStore(const BuildOptions& build) : build_(build) {}

  // A linear weight may be chosen to lie in few bits: then its codes are the parameter, under the name with their format.
  Tensor add(const std::string& name, const Shape& shape, const Init& init, Role role);
  void alias(const std::string& name, const std::string& target);  // a second published name of one tensor
  // The values that building with draws would have given it, where it was built without; does nothing twice.
  void draw(const std::string& name);

  std::vector<Parameter>& list() { return list_; }
  const std::vector<Parameter>& list() const { return list_; }
  const std::vector<std::pair<std::string, std::string>>& aliases() const { return aliases_; }
  Parameter* find(const std::string& name);  // aliases too; null if absent
  Parameter& at(const std::string& name);    // throws WeightsError naming the nearest known name

  // Value or gradient in the published layout (OIHW): the same memory, strided for convolution weights.
  static Tensor published(const Parameter& p, const Tensor& t);
  // The value to write as this dtype, in the published layout: its f32 master where there is one and the dtype is not its own.
  static Tensor stored(const Parameter& p, DType dtype);
  // Any floating dtype, which a master takes unrounded; throws WeightsError on a wrong shape. leading: the value may be the first rows only,
  // the others stay, so that what is not drawn has to be drawn before. A weight in
  // few bits takes floats under its own name, and its codes under theirs.
  void assign(const std::string& name, const Tensor& published_value, bool leading = false);
  // The parameter that holds the codes of a weight; null where there is none of that name in few bits.
  Parameter* find_quantized(const std::string& name);

  DType dtype() const { return build_.dtype; }
  Device device() const { return build_.device; }
  void check_quantization() const;  // throws ConfigError for a pattern that matched nothing

 private:
  Tensor start(const Shape& shape, const Init& init, uint64_t stream) const;

  BuildOptions build_;
  std::vector<Parameter> list_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<std::pair<std::string, std::string>> aliases_;
};

// Where in the tree of names a module registers its parameters: Linear(scope / "proj", 64, 32).
class Scope {
 public:
  explicit Scope(ParameterStore& store, std::string prefix = "") : store_(&store), prefix_(std::move(prefix)) {}
  Scope operator/(const std::string& name) const { return Scope(*store_, path(name)); }
  Scope operator/(int64_t index) const { return *this / std::to_string(index); }

  Tensor param(const std::string& name, const Shape& shape, const Init& init) const {
    return store_->add(path(name), shape, init, ParameterStore::Role::plain);
  }
  Tensor linear_weight(const std::string& name, const Shape& oi, const Init& init) const {
    return store_->add(path(name), oi, init, ParameterStore::Role::linear);
  }
  Tensor conv_weight(const std::string& name, const Shape& ohwi, const Init& init) const {
    return store_->add(path(name), ohwi, init, ParameterStore::Role::conv);
  }
  Tensor norm_param(const std::string& name, const Shape& shape, const Init& init) const {
    return store_->add(path(name), shape, init, ParameterStore::Role::norm);
  }
  Tensor buffer(const std::string& name, const Shape& shape, const Init& init) const {
    return store_->add(path(name), shape, init, ParameterStore::Role::buffer);
  }
  std::string path(const std::string& name) const { return prefix_.empty() ? name : prefix_ + "." + name; }
  ParameterStore& store() const { return *store_; }

 private:
  ParameterStore* store_;
  std::string prefix_;
};

// How a forward pass runs. training: dropout and stochastic depth draw from the running RngScope.
struct Mode {
  bool training = false;
};

// ---- layers ------------------------------------------------------------------------------------------------------------

struct Linear {
  Tensor weight;     // [O, I]
  MaybeTensor bias;  // [O]
  Linear() = default;
  Linear(const Scope& s, int64_t in, int64_t out, bool with_bias = true);  // U(-1/sqrt(in), 1/sqrt(in))
  Linear(const Scope& s, int64_t in, int64_t out, bool with_bias, const Init& weight_init, const Init& bias_init);
  Tensor operator()(const Tensor& x, Activation act = Activation::none) const { return linear(x, weight, bias, act); }
  // residual + (*this)(x) * scale; residual [..., O], scale [O] or none
  Tensor added_to(const Tensor& residual, const Tensor& x, const MaybeTensor& scale = {}) const {
    return add_linear(residual, x, weight, bias, scale);
  }
};

struct Conv2d {
  Tensor weight, bias;  // [O, KH, KW, I / groups], [O]
  Conv2dOptions options;
  Conv2d() = default;
  // padding on all four sides
  Conv2d(const Scope& s, int64_t in, int64_t out, int64_t kernel, int64_t stride = 1, int64_t padding = 0,
         int64_t groups = 1);
  // Biases are uniform as by default beside uniform weights, else zero.
  Conv2d(const Scope& s, int64_t in, int64_t out, int64_t kernel, const Conv2dOptions& options,
         const Init& weight_init);
  Tensor operator()(const Tensor& x) const { return conv2d(x, weight, bias, options); }
};

struct LayerNorm {
  Tensor weight, bias;
  double eps = 1e-5;
  LayerNorm() = default;
  LayerNorm(const Scope& s, int64_t width, double eps);
  Tensor operator()(const Tensor& x) const { return layer_norm(x, weight, bias, eps); }
};

struct RmsNorm {
  Tensor weight;
  double eps = 1e-5;
  RmsNorm() = default;
  RmsNorm(const Scope& s, int64_t width, double eps);
  Tensor operator()(const Tensor& x) const { return rms_norm(x, weight, eps); }
};

struct GroupNorm {
  Tensor weight, bias;
  int64_t groups = 32;
  double eps = 1e-5;
  GroupNorm() = default;
  GroupNorm(const Scope& s, int64_t channels, int64_t groups, double eps);
  Tensor operator()(const Tensor& x, bool silu = false) const { return group_norm(x, weight, bias, groups, eps, silu); }
};

// ---- configuration -----------------------------------------------------------------------------------------------------

// Reads keys of a JSON object by type; throws ConfigError naming the path of what is missing or of another type.
// finish() throws on keys nobody asked for, naming the nearest known one.
class Config {
 public:
  Config(const Json& json, std::string path);
  int64_t integer(const std::string& key, std::optional<int64_t> fallback = {}) const;
  int64_t positive(const std::string& key, std::optional<int64_t> fallback = {}) const;  // an integer of at least 1
  double number(const std::string& key, std::optional<double> fallback = {}) const;
  bool boolean(const std::string& key, std::optional<bool> fallback = {}) const;
  std::string string(const std::string& key, std::optional<std::string> fallback = {}) const;
  std::vector<int64_t> integers(const std::string& key, std::optional<std::vector<int64_t>> fallback = {}) const;
  std::vector<std::string> strings(const std::string& key, std::optional<std::vector<std::string>> fallback = {}) const;
  std::vector<double> numbers(const std::string& key, std::optional<std::vector<double>> fallback = {}) const;
  std::vector<std::vector<int64_t>> id_lists(const std::string& key) const;  // none if absent
  Config child(const std::string& key) const;
  bool has(const std::string& key) const;
  void ignore(const std::string& key) const;  // known, and of no effect here
  void finish() const;
  const std::string& path() const { return path_; }

 private:
  const Json* find(const std::string& key, bool required) const;
  const Json* json_;
  std::string path_;
  std::shared_ptr<std::vector<std::string>> asked_;
};

// Nearest of `known` by edit distance, for error messages.
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);

// ---- models ------------------------------------------------------------------------------------------------------------

// A model as JavaScript sees it: named tensors in, named tensors out.
struct Model {
  ParameterStore params;
  explicit Model(const BuildOptions& build) : params(build) {}
  virtual ~Model() = default;
  // Throws ValueError for unknown methods and missing tensors. Runs with gradients on or off as the caller set them.
  virtual TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) = 0;
  // Something with a memory of its own that works on this model: a text being written, a picture being painted. It is called like
  // a model, has no parameters, and keeps `self`, which is this, alive. Throws ValueError for unknown kinds.
  virtual std::unique_ptr<Model> open(const std::string& kind, const TensorMap& inputs, const Json& options,
                                      const std::shared_ptr<Model>& self);
};

// Inputs where a model with parameters wants them: floats on their device (recorded), all else on the host. Whoever calls a model or
// opens a session of it does this first.
TensorMap placed(const ParameterStore& params, const TensorMap& inputs);

// Inputs by name with a typed error when absent.
const Tensor& input(const TensorMap& inputs, const std::string& name);
MaybeTensor optional_input(const TensorMap& inputs, const std::string& name);
[[noreturn]] void unknown_method(const std::string& model, const std::string& method);

using ModelFactory = std::unique_ptr<Model> (*)(const Json& config, const BuildOptions& build);
std::map<std::string, ModelFactory>& model_registry();

// static const RegisterModel r{"vae", make_vae};  last line of the model's file
struct RegisterModel {
  RegisterModel(const char* name, ModelFactory make) { model_registry()[name] = make; }
};
// Throws ConfigError for an unknown kind. `trainable` starts true for every floating parameter that is no buffer. The key `quantization` of
// any model's configuration says which weights lie in few bits.
std::unique_ptr<Model> create_model(const std::string& kind, Json config, uint64_t seed, DType dtype,
                                    Device device = Device::cpu, bool draw = true);

}  // namespace deem
