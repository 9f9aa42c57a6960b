// The JavaScript handle of a model.
#pragma once
#include "models/module.h"
#include "node/addon.h"

namespace deem::node {

class JsModel : public Napi::ObjectWrap<JsModel> {
 public:
  static std::shared_ptr<Model> get(Napi::Value v, const char* what);  // throws ValueError, Disposed
  explicit JsModel(const Napi::CallbackInfo& info);

  Napi::Value open(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);
  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value aliases(const Napi::CallbackInfo& info);
  Napi::Value set_trainable(const Napi::CallbackInfo& info);
  Napi::Value keep_masters(const Napi::CallbackInfo& info);
  Napi::Value prepack(const Napi::CallbackInfo& info);
  Napi::Value parameter(const Napi::CallbackInfo& info);
  Napi::Value gradient(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value view(const Napi::CallbackInfo& info);
  Napi::Value assign(const Napi::CallbackInfo& info);
  Napi::Value assign_all(const Napi::CallbackInfo& info);
  Napi::Value draw(const Napi::CallbackInfo& info);
  Napi::Value zero_grad(const Napi::CallbackInfo& info);
  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value save(const Napi::CallbackInfo& info);
  Napi::Value call(const Napi::CallbackInfo& info);

 private:
  const std::shared_ptr<Model>& model(const char* what) const;
  std::shared_ptr<Model> model_;
};

TensorMap tensors_from_js(Napi::Value v, const char* what);
Json json_from_js(Napi::Value v, const char* what);

}  // namespace deem::node
