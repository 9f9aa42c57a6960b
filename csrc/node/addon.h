// Per-environment state of the addon. Every JavaScript environment (main thread, each worker) has its own.
#pragma once
#include <napi.h>

#include <memory>
#include <mutex>
#include <set>

#include "core/engine.h"

namespace deem::node {

// The way from the engine thread into an environment. Node frees the function when the environment ends, whoever still
// holds it: so every use is made under the lock, and the environment's end closes it first.
struct Carrier {
  Napi::ThreadSafeFunction function;
  std::mutex mutex;
  bool closed = false;
  std::set<std::shared_ptr<CancelFlag>> cancels;  // of tasks that wait or run
};

struct AddonData {
  Napi::FunctionReference tensor, model, optimizer;  // constructors
  Napi::FunctionReference make_error;                // (code, message) => Error, given by lib/native.ts
  std::shared_ptr<Carrier> carrier;                  // brings finished tasks to this environment
  int pending = 0;                                   // tasks under way: they keep the process alive
  // Bytes of tensors that V8 has not heard of; tensors may outlive this.
  std::shared_ptr<int64_t> untold = std::make_shared<int64_t>(0);
  bool grad = true;  // whether operations called from here record
};

inline AddonData& data_of(Napi::Env env) { return *env.GetInstanceData<AddonData>(); }

void init_tensor(Napi::Env env, Napi::Object exports);
void init_ops(Napi::Env env, Napi::Object exports);
void init_models(Napi::Env env, Napi::Object exports);
void init_train(Napi::Env env, Napi::Object exports);
void init_files(Napi::Env env, Napi::Object exports);
void init_system(Napi::Env env, Napi::Object exports);

}  // namespace deem::node
