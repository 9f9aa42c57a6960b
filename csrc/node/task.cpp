#include "node/task.h"

namespace deem::node {

static void settle(Napi::Env env, Task& task) {
  if (!task.error) {
    try {
      return task.deferred.Resolve(task.finish(env));
    } catch (const Napi::Error& e) {
      return task.deferred.Reject(e.Value());
    } catch (...) {
      task.error = std::current_exception();
    }
  }
  task.deferred.Reject(to_js_error(env, task.error).Value());
}

static void end_task(Napi::Env env, AddonData& data, Task& task) {
  Napi::HandleScope scope(env);
  try {
    settle(env, task);
  } catch (const Napi::Error&) {
    // The environment is being terminated and runs no JavaScript any more: nobody is left to hear of it.
  }
  if (--data.pending == 0) data.carrier->function.Unref(env);
}

Napi::Object start_task(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> finish) {
  AddonData& data = data_of(env);
  // Owned here until it is queued: making JavaScript objects fails while an environment is being terminated.
  std::unique_ptr<Task> owned(new Task{Napi::Promise::Deferred::New(env), std::move(work), std::move(finish), nullptr});
  std::shared_ptr<CancelFlag> cancel = owned->cancel;

  Napi::Object out = Napi::Object::New(env);
  out.Set("promise", owned->deferred.Promise());
  out.Set("abort", Napi::Function::New(env, [cancel](const Napi::CallbackInfo&) { cancel->raised = true; }));

  auto meter = std::make_shared<Meter>();
  out.Set("progress", Napi::Function::New(env, [meter](const Napi::CallbackInfo& info) -> Napi::Value {
            Napi::Array pair = Napi::Array::New(info.Env(), 2);
            pair.Set(0u, double(meter->done.load()));
            pair.Set(1u, double(meter->total.load()));
            return pair;
          }));

  if (data.pending++ == 0) data.carrier->function.Ref(env);
  {
    std::lock_guard lock(data.carrier->mutex);
    data.carrier->cancels.insert(cancel);
  }
  Task* task = owned.release();
  Engine::get().post(
      [task] {
        try {
          poll_cancel();  // aborted while it waited
          task->work();
        } catch (...) {
          task->error = std::current_exception();
        }
        task->work = nullptr;  // inputs are freed here, not on the JavaScript thread
      },
      cancel,
      [meter](int64_t done, int64_t total) {
        meter->total = total;
        meter->done = done;
      },
      [task, cancel, carrier = data.carrier, state = &data] {
        std::lock_guard lock(carrier->mutex);
        carrier->cancels.erase(cancel);
        if (carrier->closed) return delete task;  // nobody is left to hear of it
        napi_status status =
            carrier->function.NonBlockingCall(task, [state](Napi::Env env, Napi::Function, Task* done) {
              if (env != nullptr) end_task(env, *state, *done);  // null: the environment is going away
              delete done;
            });
        if (status != napi_ok) delete task;
      });
  return out;
}

}  // namespace deem::node
