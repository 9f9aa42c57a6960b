// Work on the engine thread with a promise: {promise, abort(), progress()}. `work` runs there and must not touch Napi; `finish` turns
// its result into a JavaScript value on the JavaScript thread. Whatever work captures stays alive until it is done.
#pragma once
#include <atomic>
#include <functional>

#include "node/bind.h"

namespace deem::node {

// How far a task is, written by the engine thread and read by JavaScript.
struct Meter {
  std::atomic<int64_t> done{0}, total{0};
};

struct Task {
  Napi::Promise::Deferred deferred;
  std::function<void()> work;
  std::function<Napi::Value(Napi::Env)> finish;
  std::exception_ptr error;
  std::shared_ptr<CancelFlag> cancel = std::make_shared<CancelFlag>();
};

Napi::Object start_task(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> finish);

// The common case: work returns a value that to_js() can convert.
template <class R>
Napi::Object start_task(Napi::Env env, std::function<R()> work) {
  auto result = std::make_shared<std::optional<R>>();
  return start_task(
      env, [work = std::move(work), result] { result->emplace(work()); },
      [result](Napi::Env e) -> Napi::Value { return to_js(e, **result); });
}

}  // namespace deem::node
