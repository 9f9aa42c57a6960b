// Memory, threads and what the build found, for lib/native.ts.
#include "core/kernel.h"
#include "core/memory.h"
#include "cpu/parallel.h"
#include "node/bind.h"

namespace deem::node {

static Napi::Value memory(const Napi::CallbackInfo& info) {
  MemoryStats s = memory_stats();
  auto o = Napi::Object::New(info.Env());
  o.Set("current", double(s.current));
  o.Set("peak", double(s.peak));
  o.Set("reserved", double(s.reserved));
  o.Set("limit", double(s.limit));
  o.Set("allocations", double(s.allocations));
  return o;
}

void init_system(Napi::Env env, Napi::Object exports) {
  auto set = [&](const char* name, auto f) { exports.Set(name, Napi::Function::New(env, f, name)); };
  set("memory", memory);
  set("resetPeakMemory", [](const Napi::CallbackInfo&) { reset_peak_memory(); });
  set("emptyCache", [](const Napi::CallbackInfo&) { empty_cache(); });
  set("setMemoryLimit", [](const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      int64_t bytes = From<int64_t>::js(info[0], "setMemoryLimit");
      check<ValueError>(bytes >= 0, "[setMemoryLimit] the limit must not be negative but is ", bytes);
      set_memory_limit(size_t(bytes));
    });
  });
  set("threads",
      [](const Napi::CallbackInfo& info) -> Napi::Value { return Napi::Number::New(info.Env(), num_threads()); });
  set("setThreads", [](const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] {
      int64_t n = From<int64_t>::js(info[0], "setThreads");
      check<ValueError>(n >= 1 && n <= 256, "[setThreads] threads must be 1..256 but got ", n);
      Engine::get().run_sync([&] { set_num_threads(int(n)); });
    });
  });
  set("isa", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return Napi::String::New(info.Env(), isa_name(current_isa()));
  });
  set("checkDevice", [](const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { device_from_name(From<std::string>::js(info[0], "device")); });
  });
  set("setErrorFactory", [](const Napi::CallbackInfo& info) {
    if (info[0].IsFunction()) data_of(info.Env()).make_error = Napi::Persistent(info[0].As<Napi::Function>());
  });
}

}  // namespace deem::node
