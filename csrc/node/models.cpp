// Models as JavaScript sees them: created by registered name, called with named tensors, parameters by published name.
#include "core/rng.h"
#include "models/weights.h"
#include "node/model.h"
#include "node/task.h"

namespace deem::node {

static constexpr napi_type_tag kTag = {0x6465656d6d6f6465, 0x6c206f66206a7321};

std::shared_ptr<Model> JsModel::get(Napi::Value v, const char* what) {
  bool ok = false;
  if (v.IsObject()) napi_check_object_type_tag(v.Env(), v, &kTag, &ok);
  check<ValueError>(ok, "[", what, "] needs a model");
  return Unwrap(v.As<Napi::Object>())->model(what);
}

JsModel::JsModel(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "models are made by createModel(), not by new");
  model_ = *info[0].As<Napi::External<std::shared_ptr<Model>>>().Data();
  napi_type_tag_object(info.Env(), info.This(), &kTag);
}

const std::shared_ptr<Model>& JsModel::model(const char* what) const {
  check<Disposed>(model_ != nullptr, "[", what, "] the model was disposed");
  return model_;
}

TensorMap tensors_from_js(Napi::Value v, const char* what) {
  check<ValueError>(v.IsObject(), "[", what, "] needs an object of tensors");
  TensorMap out;
  auto object = v.As<Napi::Object>();
  auto names = object.GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); i++) {
    std::string name = names.Get(i).ToString();
    Napi::Value t = object.Get(name);
    if (!t.IsUndefined() && !t.IsNull()) out.emplace(name, JsTensor::get(t, what));
  }
  return out;
}

Json json_from_js(Napi::Value v, const char* what) {
  std::string text = From<std::string>::js(v, what);
  Json json = Json::parse(text, nullptr, false);
  check<ConfigError>(!json.is_discarded(), "[", what, "] the options are not valid JSON");
  return json;
}

static Napi::Value model_task(Napi::Env env, std::function<std::shared_ptr<Model>()> make) {
  auto made = std::make_shared<std::shared_ptr<Model>>();
  return start_task(
      env, [=] { *made = make(); },
      [made](Napi::Env env) -> Napi::Value {
        return data_of(env).model.New({Napi::External<std::shared_ptr<Model>>::New(env, made.get())});
      });
}

static Napi::Value create(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto kind = From<std::string>::js(info[0], "createModel");
    Json config = json_from_js(info[1], "createModel");
    auto seed = uint64_t(From<int64_t>::js(info[2], "createModel"));
    auto dtype = From<DType>::js(info[3], "createModel");
    auto device = From<Device>::js(info[4], "createModel");
    bool draw = From<bool>::js(info[5], "createModel");
    return model_task(
        info.Env(), [=]() -> std::shared_ptr<Model> { return create_model(kind, config, seed, dtype, device, draw); });
  });
}

// open(kind, inputs, optionsJson) -> task of a session, which is called like a model
Napi::Value JsModel::open(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = model("open");
    auto kind = From<std::string>::js(info[0], "open");
    TensorMap inputs = tensors_from_js(info[1], "open");
    Json options = json_from_js(info[2], "open");
    return model_task(info.Env(), [=]() -> std::shared_ptr<Model> {
      GradMode off(false);
      return m->open(kind, placed(m->params, inputs), options, m);
    });
  });
}

Napi::Value JsModel::dispose(const Napi::CallbackInfo& info) {
  model_.reset();
  return info.Env().Undefined();
}

Napi::Value JsModel::parameters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto m = model("parameters");
    auto out = Napi::Array::New(info.Env());
    Engine::get().run_sync([] {});  // setTrainable may be queued
    uint32_t i = 0;
    for (const Parameter& p : m->params.list()) {
      auto o = Napi::Object::New(info.Env());
      Shape s = p.value.shape();
      if (p.conv) s = {s[0], s[3], s[1], s[2]};
      auto shape = Napi::Array::New(info.Env());
      for (int k = 0; k < s.size(); k++) shape.Set(uint32_t(k), double(s[k]));
      o.Set("name", p.name);
      o.Set("shape", shape);
      o.Set("dtype", name_of(p.value.dtype()));
      o.Set("trainable", p.value.requires_grad());
      o.Set("norm", p.norm);
      o.Set("buffer", p.buffer);
      o.Set("master", bool(p.value.master()));
      o.Set("linear", p.linear);
      o.Set("prepacked", p.value.impl()->packed != nullptr);
      if (p.quantized) {
        auto q = Napi::Object::New(info.Env());
        auto whole = Napi::Array::New(info.Env());
        for (uint32_t k = 0; k < 2; k++) whole.Set(k, double(p.quantized.size(int(k))));
        q.Set("name", p.name.substr(0, p.name.rfind('.')));
        q.Set("shape", whole);
        o.Set("quantized", q);
      }
      out.Set(i++, o);
    }
    return out;
  });
}

Napi::Value JsModel::aliases(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto out = Napi::Object::New(info.Env());
    for (auto& [name, target] : model("aliases")->params.aliases()) out.Set(name, target);
    return out;
  });
}

Napi::Value JsModel::set_trainable(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto m = model("setTrainable");
    auto names = From<std::vector<std::string>>::js(info[0], "setTrainable");
    bool on = From<bool>::js(info[1], "setTrainable");
    Engine::get().run_sync([&] {
      for (auto& name : names) {
        Parameter& p = m->params.at(name);
        check<ValueError>(!(on && p.buffer), "'", name, "' is a buffer and cannot be trained");
        p.value.set_requires_grad(on);
      }
    });
    return info.Env().Undefined();
  });
}

// parameter(name): the live tensor, convolution weights as [O, KH, KW, I].
Napi::Value JsModel::parameter(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return JsTensor::wrap(info.Env(), model("parameter")->params.at(From<std::string>::js(info[0], "parameter")).value);
  });
}

// gradient(name): in the published layout, or null.
Napi::Value JsModel::gradient(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Parameter& p = model("gradient")->params.at(From<std::string>::js(info[0], "gradient"));
    Tensor g;
    Engine::get().run_sync([&] {
      if (p.value.grad()) g = ParameterStore::published(p, p.value.grad());
      if (g && p.conv) g = g.clone();
    });
    return g ? JsTensor::wrap(info.Env(), g) : info.Env().Null();
  });
}

Napi::Value JsModel::read(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Parameter& p = model("read")->params.at(From<std::string>::js(info[0], "read"));
    Tensor v;
    Engine::get().run_sync([&] { v = ParameterStore::published(p, p.value).clone(); });
    return JsTensor::wrap(info.Env(), v);
  });
}

// view(name, dtype): the live value in the published layout, without a copy or a graph; the master, if any, where a dtype is given that is
// not the parameter's.
Napi::Value JsModel::view(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Parameter& p = model("view")->params.at(From<std::string>::js(info[0], "view"));
    auto dtype = From<std::string>::js(info[1], "view");
    Tensor v;
    Engine::get().run_sync(
        [&] { v = ParameterStore::stored(p, dtype.empty() ? p.value.dtype() : dtype_from_name(dtype)); });
    return JsTensor::wrap(info.Env(), v);
  });
}

// keepMasters(names, on): f32 values beside weights of bf16 and f16, or no longer.
Napi::Value JsModel::keep_masters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto m = model("keepMasters");
    auto names = From<std::vector<std::string>>::js(info[0], "keepMasters");
    bool on = From<bool>::js(info[1], "keepMasters");
    Engine::get().run_sync([&] {
      for (auto& name : names) {
        Parameter& p = m->params.at(name);
        if (on) p.value.keep_master();
        else p.value.drop_master();
      }
    });
    return info.Env().Undefined();
  });
}

// prepack(names, on) -> task of how many are kept: a second time in the order that products read, or no longer.
Napi::Value JsModel::prepack(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = model("prepack");
    auto names = From<std::vector<std::string>>::js(info[0], "prepack");
    bool on = From<bool>::js(info[1], "prepack");
    auto count = std::make_shared<int64_t>(0);
    return start_task(
        info.Env(),
        [=] {
          for (const std::string& name : names) {
            Parameter& p = m->params.at(name);
            check<ValueError>(p.linear, "'", name, "' is not the weight of a linear layer");
            if (!on) p.value.drop_packed();
            else if (deem::prepack(p.value)) ++*count;
            poll_cancel();
          }
        },
        [count](Napi::Env env) -> Napi::Value { return Napi::Number::New(env, double(*count)); });
  });
}

Napi::Value JsModel::assign(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto m = model("assign");
    auto name = From<std::string>::js(info[0], "assign");
    Tensor v = JsTensor::get(info[1], "assign");
    Engine::get().run_sync([&] { m->params.assign(name, v); });
    return info.Env().Undefined();
  });
}

// draw(names) -> task; see ParameterStore::draw
Napi::Value JsModel::draw(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = model("draw");
    auto names = From<std::vector<std::string>>::js(info[0], "draw");
    return start_task(
        info.Env(),
        [=] {
          for (const std::string& name : names) {
            m->params.draw(name);
            poll_cancel();
          }
        },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  });
}

// assignAll(names, values, leading) -> task; values in the published layout, the first rows suffice if `leading`. The first that does
// not fit ends it.
Napi::Value JsModel::assign_all(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = model("assignAll");
    auto names = From<std::vector<std::string>>::js(info[0], "assignAll");
    auto values = From<std::vector<Tensor>>::js(info[1], "assignAll");
    bool leading = From<bool>::js(info[2], "assignAll");
    check<ValueError>(names.size() == values.size(), "[assignAll] ", names.size(), " names but ", values.size(),
                      " values");
    return start_task(
        info.Env(),
        [=] {
          for (size_t i = 0; i < names.size(); i++) {
            m->params.assign(names[i], values[i], leading);
            report_progress(int64_t(i + 1), int64_t(names.size()));
            poll_cancel();
          }
        },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  });
}

Napi::Value JsModel::zero_grad(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    auto m = model("zeroGrad");
    Engine::get().run_sync([&] {
      for (Parameter& p : m->params.list()) p.value.clear_grad();
    });
    return info.Env().Undefined();
  });
}

Napi::Value JsModel::load(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = model("load");
    auto path = From<std::string>::js(info[0], "load");
    auto prefix = From<std::string>::js(info[1], "load");
    bool strict = From<bool>::js(info[2], "load");
    auto report = std::make_shared<LoadReport>();
    return start_task(
        info.Env(), [=] { *report = load_weights(m->params, path, prefix, strict); },
        [report](Napi::Env env) -> Napi::Value {
          auto list = [&](const std::vector<std::string>& names) {
            auto a = Napi::Array::New(env);
            for (uint32_t i = 0; i < names.size(); i++) a.Set(i, names[i]);
            return a;
          };
          auto o = Napi::Object::New(env);
          o.Set("missing", list(report->missing));
          o.Set("unexpected", list(report->unexpected));
          return o;
        });
  });
}

Napi::Value JsModel::save(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = model("save");
    auto path = From<std::string>::js(info[0], "save");
    auto dtype = From<std::string>::js(info[1], "save");
    return start_task(
        info.Env(), [=] { save_weights(m->params, path, dtype.empty() ? m->params.dtype() : dtype_from_name(dtype)); },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  });
}

// call(method, inputs, optionsJson, grad, seed, step, asData) -> task of named tensors, or of {data, shape} where data is asked for:
// that takes no second turn on the engine thread
Napi::Value JsModel::call(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = model("call");
    auto method = From<std::string>::js(info[0], "call");
    TensorMap inputs = tensors_from_js(info[1], "call");
    Json options = json_from_js(info[2], "call");
    bool grad = From<bool>::js(info[3], "call");
    auto seed = uint64_t(From<int64_t>::js(info[4], "call")), step = uint64_t(From<int64_t>::js(info[5], "call"));
    bool as_data = From<bool>::js(info[6], "call");
    auto outputs = std::make_shared<TensorMap>();
    return start_task(
        info.Env(),
        [=] {
          GradMode mode(grad);
          RngScope draws(seed, step);
          *outputs = m->call(method, placed(m->params, inputs), options);
          // A copy: what was given may be memory that later calls write to.
          for (auto& [name, t] : *outputs)
            if (as_data) t = host_copy(t);
        },
        [outputs, as_data](Napi::Env env) -> Napi::Value {
          auto o = Napi::Object::New(env);
          for (auto& [name, t] : *outputs) {
            if (!as_data) {
              o.Set(name, JsTensor::wrap(env, t));
              continue;
            }
            auto plain = Napi::Object::New(env);
            auto shape = Napi::Array::New(env);
            for (int k = 0; k < t.ndim(); k++) shape.Set(uint32_t(k), double(t.size(k)));
            plain.Set("data", JsTensor::elements(env, t));
            plain.Set("shape", shape);
            o.Set(name, plain);
          }
          return o;
        });
  });
}

void init_models(Napi::Env env, Napi::Object exports) {
  Napi::Function ctor = JsModel::DefineClass(
      env, "NativeModel",
      {JsModel::InstanceMethod<&JsModel::dispose>("dispose"), JsModel::InstanceMethod<&JsModel::open>("open"),
       JsModel::InstanceMethod<&JsModel::parameters>("parameters"),
       JsModel::InstanceMethod<&JsModel::aliases>("aliases"),
       JsModel::InstanceMethod<&JsModel::set_trainable>("setTrainable"),
       JsModel::InstanceMethod<&JsModel::keep_masters>("keepMasters"),
       JsModel::InstanceMethod<&JsModel::prepack>("prepack"), JsModel::InstanceMethod<&JsModel::parameter>("parameter"),
       JsModel::InstanceMethod<&JsModel::gradient>("gradient"), JsModel::InstanceMethod<&JsModel::read>("read"),
       JsModel::InstanceMethod<&JsModel::view>("view"), JsModel::InstanceMethod<&JsModel::assign>("assign"),
       JsModel::InstanceMethod<&JsModel::zero_grad>("zeroGrad"),
       JsModel::InstanceMethod<&JsModel::assign_all>("assignAll"), JsModel::InstanceMethod<&JsModel::draw>("draw"),
       JsModel::InstanceMethod<&JsModel::load>("load"), JsModel::InstanceMethod<&JsModel::save>("save"),
       JsModel::InstanceMethod<&JsModel::call>("call")});
  data_of(env).model = Napi::Persistent(ctor);
  exports.Set("createModel", Napi::Function::New(env, create, "createModel"));
  exports.Set("modelKinds", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                auto out = Napi::Array::New(info.Env());
                uint32_t i = 0;
                for (auto& [kind, make] : model_registry()) out.Set(i++, kind);
                return out;
              }));
}

}  // namespace deem::node
