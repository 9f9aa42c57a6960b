// The JavaScript handle of a tensor.
#pragma once
#include "core/tensor.h"
#include "node/addon.h"

namespace deem::node {

// A contiguous copy on the CPU that nothing else can write to.
inline Tensor host_copy(const Tensor& t) { return t.device() == Device::cpu ? t.clone() : t.to(Device::cpu); }

class JsTensor : public Napi::ObjectWrap<JsTensor> {
 public:
  static Napi::Value wrap(Napi::Env env, const Tensor& t);
  // The tensor behind a value; throws DTypeError if it is no tensor, Disposed if it was disposed.
  static Tensor get(Napi::Value v, const char* what);

  explicit JsTensor(const Napi::CallbackInfo& info);
  void Finalize(Napi::BasicEnv env) override;
  static void define(Napi::Env env, Napi::Object exports);
  // The elements of a contiguous tensor on the CPU that nothing else can write to.
  static Napi::Value elements(Napi::Env env, const Tensor& t);

 private:
  const Tensor& tensor(const char* what) const;
  void drop(Napi::BasicEnv env);
  void tell(Napi::BasicEnv env, int64_t bytes);

  Napi::Value dispose(const Napi::CallbackInfo& info);
  Napi::Value disposed(const Napi::CallbackInfo& info);
  Napi::Value shape(const Napi::CallbackInfo& info);
  Napi::Value dtype(const Napi::CallbackInfo& info);
  Napi::Value device(const Napi::CallbackInfo& info);
  Napi::Value tracked(const Napi::CallbackInfo& info);
  Napi::Value requires_grad(const Napi::CallbackInfo& info);
  Napi::Value set_requires_grad(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value data(const Napi::CallbackInfo& info);
  Napi::Value item(const Napi::CallbackInfo& info);
  Napi::Value grad(const Napi::CallbackInfo& info);
  Napi::Value clear_grad(const Napi::CallbackInfo& info);
  Napi::Value detach(const Napi::CallbackInfo& info);

  Tensor t_;
  int64_t bytes_ = 0;
  std::shared_ptr<int64_t> untold_;  // of the environment
};

}  // namespace deem::node
