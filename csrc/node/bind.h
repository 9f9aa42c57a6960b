// Marshalling between JavaScript values and C++ ones, and the one place that turns C++ errors into JavaScript ones.
// Values are converted on the JavaScript thread, before anything is queued: work on the engine thread never sees Napi.
#pragma once
#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/engine.h"
#include "node/addon.h"
#include "node/tensor.h"
#include "ops.h"

namespace deem::node {

// Any C++ error as a JavaScript error with a `code`. Must run on the JavaScript thread.
Napi::Error to_js_error(Napi::Env env, std::exception_ptr error);

// Runs f, turning what it throws into a JavaScript exception.
template <class F>
auto guarded(Napi::Env env, F&& f) {
  try {
    return f();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

// From<T>::js(value, what) converts or throws ValueError naming `what`.
template <class T>
struct From;

template <>
struct From<double> {
  static double js(Napi::Value v, const char* what) {
    check<ValueError>(v.IsNumber(), "[", what, "] needs a number");
    return v.As<Napi::Number>().DoubleValue();
  }
};
template <>
struct From<int64_t> {
  static int64_t js(Napi::Value v, const char* what) {
    double d = From<double>::js(v, what);
    check<ValueError>(d == std::floor(d) && std::abs(d) <= 9007199254740991.0, "[", what,
                      "] needs a whole number but got ", d);
    return int64_t(d);
  }
};
template <>
struct From<bool> {
  static bool js(Napi::Value v, const char* what) {
    check<ValueError>(v.IsBoolean(), "[", what, "] needs true or false");
    return v.As<Napi::Boolean>();
  }
};
template <>
struct From<std::string> {
  static std::string js(Napi::Value v, const char* what) {
    check<ValueError>(v.IsString(), "[", what, "] needs a string");
    return v.As<Napi::String>();
  }
};
template <>
struct From<DType> {
  static DType js(Napi::Value v, const char* what) { return dtype_from_name(From<std::string>::js(v, what)); }
};
template <>
struct From<Device> {  // loads what the device needs
  static Device js(Napi::Value v, const char* what) {
    return v.IsUndefined() ? default_device() : device_from_name(From<std::string>::js(v, what));
  }
};
// Of a new tensor: integers are made on the CPU, where operations read them, unless a device is named.
inline Device device_for(Napi::Value v, DType dtype, const char* what) {
  return v.IsUndefined() && !is_float(dtype) ? Device::cpu : From<Device>::js(v, what);
}
template <>
struct From<Activation> {
  static Activation js(Napi::Value v, const char* what) { return activation_from_name(From<std::string>::js(v, what)); }
};
template <>
struct From<Tensor> {
  static Tensor js(Napi::Value v, const char* what) { return JsTensor::get(v, what); }
};
template <>
struct From<MaybeTensor> {
  static MaybeTensor js(Napi::Value v, const char* what) {
    if (v.IsUndefined() || v.IsNull()) return {};
    return JsTensor::get(v, what);
  }
};
template <class T>
struct From<std::vector<T>> {
  static std::vector<T> js(Napi::Value v, const char* what) {
    check<ValueError>(v.IsArray(), "[", what, "] needs an array");
    auto a = v.As<Napi::Array>();
    check<ValueError>(a.Length() <= 1 << 20, "[", what, "] got an array of ", a.Length(), " elements");
    std::vector<T> out;
    out.reserve(a.Length());
    for (uint32_t i = 0; i < a.Length(); i++) out.push_back(From<T>::js(a.Get(i), what));
    return out;
  }
};
template <>
struct From<Shape> {
  static Shape js(Napi::Value v, const char* what) { return Shape(From<std::vector<int64_t>>::js(v, what)); }
};
template <>
struct From<LevelShapes> {
  static LevelShapes js(Napi::Value v, const char* what) {
    LevelShapes out;
    for (auto& pair : From<std::vector<std::vector<int64_t>>>::js(v, what)) {
      check<ValueError>(pair.size() == 2, "[", what, "] level shapes are [height, width] pairs");
      out.push_back({pair[0], pair[1]});
    }
    return out;
  }
};

// Fields of an options object; absent ones keep their default, and finish() throws ConfigError for what nobody asked for.
class Fields {
 public:
  Fields(Napi::Value v, const char* what) : what_(what) {
    check<ValueError>(v.IsUndefined() || v.IsObject(), "[", what, "] needs an options object");
    if (v.IsObject()) object_ = v.As<Napi::Object>();
  }
  template <class T>
  void get(const char* name, T& into) {
    known_.push_back(name);
    if (object_.IsEmpty()) return;
    Napi::Value v = object_.Get(name);
    if (!v.IsUndefined()) into = From<T>::js(v, what_);
  }

  void finish() const {
    if (object_.IsEmpty()) return;
    const Napi::Array names = object_.GetPropertyNames();
    for (uint32_t i = 0; i < names.Length(); i++) {
      const std::string name = names.Get(i).ToString();
      check<ConfigError>(std::find(known_.begin(), known_.end(), name) != known_.end(), "[", what_,
                         "] unknown option '", name, "'");
    }
  }

 private:
  const char* what_;
  Napi::Object object_;
  std::vector<std::string_view> known_;
};
template <>
struct From<Conv2dOptions> {
  static Conv2dOptions js(Napi::Value v, const char* what) {
    Conv2dOptions o;
    Fields f(v, what);
    f.get("stride", o.stride);
    f.get("padLeft", o.pad_left);
    f.get("padRight", o.pad_right);
    f.get("padTop", o.pad_top);
    f.get("padBottom", o.pad_bottom);
    f.get("groups", o.groups);
    f.finish();
    return o;
  }
};
template <>
struct From<AttentionOptions> {
  static AttentionOptions js(Napi::Value v, const char* what) {
    AttentionOptions o;
    Fields f(v, what);
    f.get("scale", o.scale);
    f.get("causal", o.causal);
    f.finish();
    return o;
  }
};
template <>
struct From<MmfsOptions> {
  static MmfsOptions js(Napi::Value v, const char* what) {
    MmfsOptions o{0, 0, {}, {}};
    Fields f(v, what);
    f.get("heads", o.heads);
    f.get("points", o.points);
    f.get("levelShapes", o.level_shapes);
    f.get("scaleRatios", o.scale_ratios);
    f.finish();
    return o;
  }
};

// object[name] = v for names that come from outside: Set would take `__proto__` for the prototype.
inline void set_own(const Napi::Object& object, const std::string& name, Napi::Value v) {
  object.DefineProperty(Napi::PropertyDescriptor::Value(name, v, napi_default_jsproperty));
}

inline Napi::Value to_js(Napi::Env env, const Tensor& t) { return JsTensor::wrap(env, t); }
inline Napi::Value to_js(Napi::Env env, double v) { return Napi::Number::New(env, v); }

template <class... A, size_t... I>
std::tuple<std::decay_t<A>...> arguments(const Napi::CallbackInfo& info, const char* name, std::index_sequence<I...>) {
  return {From<std::decay_t<A>>::js(info[I], name)...};  // braces: left to right
}

// Calls an operation with the arguments of a JavaScript call, on the engine thread, and waits for it.
template <class R, class... A>
Napi::Value call_op(const Napi::CallbackInfo& info, const char* name, R (*op)(A...)) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto args = arguments<A...>(info, name, std::index_sequence_for<A...>());
    bool grad = data_of(info.Env()).grad;
    std::optional<R> result;
    Engine::get().run_sync([&] {
      GradMode mode(grad);
      result.emplace(std::apply(op, args));
    });
    return to_js(info.Env(), *result);
  });
}

}  // namespace deem::node
