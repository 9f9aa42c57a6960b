#include "node/addon.h"

#include "cpu/parallel.h"

namespace deem::node {

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  unbind_this_thread();  // the event loop shares no core by force, and the engine thread inherits this mask
  auto* data = new AddonData;
  env.SetInstanceData(data);
  auto carrier = data->carrier = std::make_shared<Carrier>();
  carrier->function =
      Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "deem", 0, 1);
  carrier->function.Unref(env);
  // Hooks run last in, first out: this one before the function's own.
  env.AddCleanupHook([carrier] {
    std::lock_guard lock(carrier->mutex);
    carrier->closed = true;
    for (auto& cancel : carrier->cancels) cancel->raised = true;  // nobody waits for them, others wait behind them
  });
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
