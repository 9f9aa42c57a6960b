// Training as JavaScript sees it: backward, AdamW, and a whole step as one task.
#include "node/model.h"
#include "node/task.h"
#include "train/adamw.h"
#include "train/step.h"

namespace deem::node {
namespace {

constexpr napi_type_tag kTag = {0x6465656d6f707469, 0x6d697a6572206a73};

class JsAdamW : public Napi::ObjectWrap<JsAdamW> {
 public:
  // new NativeAdamW([{name, tensor, lr, weightDecay}], {beta1, beta2, eps, maxGradNorm, masterWeights})
  explicit JsAdamW(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    guarded(info.Env(), [&] {
      check<ValueError>(info[0].IsArray(), "[AdamW] needs an array of parameters");
      auto list = info[0].As<Napi::Array>();
      std::vector<AdamW::Item> items;
      for (uint32_t i = 0; i < list.Length(); i++) {
        check<ValueError>(list.Get(i).IsObject(), "[AdamW] parameter ", i, " is no object");
        auto o = list.Get(i).As<Napi::Object>();
        items.push_back({From<std::string>::js(o.Get("name"), "AdamW"), JsTensor::get(o.Get("tensor"), "AdamW"),
                         From<double>::js(o.Get("lr"), "AdamW"), From<double>::js(o.Get("weightDecay"), "AdamW")});
      }
      AdamW::Options options;
      Fields f(info[1], "AdamW");
      f.get("beta1", options.beta1);
      f.get("beta2", options.beta2);
      f.get("eps", options.eps);
      f.get("maxGradNorm", options.max_grad_norm);
      f.get("masterWeights", options.master_weights);
      f.finish();
      Engine::get().run_sync([&] { optimizer_ = std::make_shared<AdamW>(std::move(items), options); });
      napi_type_tag_object(info.Env(), info.This(), &kTag);
    });
  }

  static std::shared_ptr<AdamW> get(Napi::Value v, const char* what) {
    bool ok = false;
    if (v.IsObject()) napi_check_object_type_tag(v.Env(), v, &kTag, &ok);
    check<ValueError>(ok, "[", what, "] needs an optimizer");
    return Unwrap(v.As<Napi::Object>())->optimizer(what);
  }

  Napi::Value dispose(const Napi::CallbackInfo& info) {
    optimizer_.reset();
    return info.Env().Undefined();
  }
  Napi::Value step(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      auto o = optimizer("step");
      double factor = From<double>::js(info[0], "step");
      double scale = info[1].IsUndefined() ? 0 : From<double>::js(info[1], "step");
      return start_task<double>(info.Env(), [=] { return o->step(factor, scale); });
    });
  }
  Napi::Value zero_grad(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      auto o = optimizer("zeroGrad");
      Engine::get().run_sync([&] { o->zero_grad(); });
      return info.Env().Undefined();
    });
  }
  Napi::Value save(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      auto o = optimizer("save");
      auto path = From<std::string>::js(info[0], "save");
      return start_task(
          info.Env(), [=] { save_optimizer(*o, path); }, [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
    });
  }
  Napi::Value load(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      auto o = optimizer("load");
      auto path = From<std::string>::js(info[0], "load");
      return start_task(
          info.Env(), [=] { load_optimizer(*o, path); }, [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
    });
  }

 private:
  const std::shared_ptr<AdamW>& optimizer(const char* what) const {
    check<Disposed>(optimizer_ != nullptr, "[", what, "] the optimizer was disposed");
    return optimizer_;
  }
  std::shared_ptr<AdamW> optimizer_;
};

// backward(tensors, gradients | null)
Napi::Value js_backward(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto roots = From<std::vector<Tensor>>::js(info[0], "backward");
    Tensors seeds;
    if (!info[1].IsNull() && !info[1].IsUndefined()) seeds = From<std::vector<Tensor>>::js(info[1], "backward");
    return start_task(
        info.Env(), [=] { backward(roots, seeds); }, [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  });
}

// trainStep(model, method, inputs, optionsJson, optimizer | null, {lrFactor, lossScale, gradScale, seed, step})
Napi::Value js_train_step(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto m = JsModel::get(info[0], "trainStep");
    auto method = From<std::string>::js(info[1], "trainStep");
    TensorMap inputs = tensors_from_js(info[2], "trainStep");
    Json options = json_from_js(info[3], "trainStep");
    std::shared_ptr<AdamW> optimizer;
    if (!info[4].IsNull() && !info[4].IsUndefined()) optimizer = JsAdamW::get(info[4], "trainStep");
    StepOptions step;
    int64_t seed = 0, number = 0;
    Fields f(info[5], "trainStep");
    f.get("lrFactor", step.lr_factor);
    f.get("lossScale", step.loss_scale);
    f.get("gradScale", step.grad_scale);
    f.get("seed", seed);
    f.get("step", number);
    f.finish();
    step.seed = uint64_t(seed);
    step.step = uint64_t(number);
    auto scalars = std::make_shared<std::map<std::string, double>>();
    return start_task(
        info.Env(), [=] { *scalars = train_step(*m, method, inputs, options, optimizer.get(), step); },
        [scalars](Napi::Env env) -> Napi::Value {
          auto o = Napi::Object::New(env);
          for (auto& [name, v] : *scalars) o.Set(name, v);
          return o;
        });
  });
}

}  // namespace

void init_train(Napi::Env env, Napi::Object exports) {
  exports.Set("NativeAdamW", JsAdamW::DefineClass(env, "NativeAdamW",
                                                  {JsAdamW::InstanceMethod<&JsAdamW::dispose>("dispose"),
                                                   JsAdamW::InstanceMethod<&JsAdamW::step>("step"),
                                                   JsAdamW::InstanceMethod<&JsAdamW::zero_grad>("zeroGrad"),
                                                   JsAdamW::InstanceMethod<&JsAdamW::save>("save"),
                                                   JsAdamW::InstanceMethod<&JsAdamW::load>("load")}));
  exports.Set("backward", Napi::Function::New(env, js_backward, "backward"));
  exports.Set("trainStep", Napi::Function::New(env, js_train_step, "trainStep"));
}

}  // namespace deem::node
