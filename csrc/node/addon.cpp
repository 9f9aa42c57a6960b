#include "node/addon.h"

namespace deem::node {

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* data = new AddonData;
  env.SetInstanceData(data);
  data->settle =
      Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "deem", 0, 1);
  data->settle.Unref(env);
  init_tensor(env, exports);
  init_ops(env, exports);
  init_models(env, exports);
  init_train(env, exports);
  init_files(env, exports);
  init_system(env, exports);
  return exports;
}

NODE_API_MODULE(deem, init)

}  // namespace deem::node
