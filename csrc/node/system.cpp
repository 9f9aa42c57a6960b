// Memory, threads and what the build found, for lib/native.ts.
#include "core/kernel.h"
#include "core/plugin.h"
#include "cpu/parallel.h"
#include "node/task.h"

namespace deem::node {

// Calls f with the table of the device that a call names, the default one if none.
template <class F>
static auto on_device(const Napi::CallbackInfo& info, size_t argument, const char* what, F&& f) {
  return guarded(info.Env(), [&] { return f(device_api(From<Device>::js(info[argument], what))); });
}

// memory(device)
static Napi::Value memory(const Napi::CallbackInfo& info) {
  MemoryStats s = on_device(info, 0, "memory", [](const DeviceApi& api) { return api.memory_stats(); });
  auto o = Napi::Object::New(info.Env());
  o.Set("current", double(s.current));
  o.Set("peak", double(s.peak));
  o.Set("reserved", double(s.reserved));
  o.Set("limit", double(s.limit));
  o.Set("allocations", double(s.allocations));
  return o;
}

// devices() -> [{device, name, usable, why, index, count, capability, totalBytes, freeBytes, memoryRate, f32Rate, tensorRate}]: the CPU,
// then every GPU, or one line for what keeps them away.
static Napi::Value devices(const Napi::CallbackInfo& info) {
  struct Row {
    std::string device, why;
    DeviceInfo info;
  };
  std::vector<Row> rows{{"cpu", "", device_api(Device::cpu).info(-1)}};
  guarded(info.Env(), [&] {
    Engine::get().run_sync([&] {
      std::string why = why_absent(Device::cuda);
      if (!why.empty()) return rows.push_back({"cuda", why, {}});
      const DeviceApi& api = device_api(Device::cuda);
      for (int i = 0, count = api.info(-1).count; i < count; i++) rows.push_back({str("cuda:", i), "", api.info(i)});
    });
  });
  auto out = Napi::Array::New(info.Env());
  for (uint32_t i = 0; i < rows.size(); i++) {
    const Row& row = rows[i];
    auto o = Napi::Object::New(info.Env());
    o.Set("device", row.device);
    o.Set("name", row.info.name);
    o.Set("usable", row.why.empty());
    o.Set("why", row.why);
    o.Set("capability", row.info.major ? str(row.info.major, '.', row.info.minor) : "");
    o.Set("totalBytes", double(row.info.total_bytes));
    o.Set("freeBytes", double(row.info.free_bytes));
    o.Set("memoryRate", row.info.memory_rate);
    o.Set("f32Rate", row.info.f32_rate);
    o.Set("tensorRate", row.info.tensor_rate);
    out.Set(i, o);
  }
  return out;
}

// synchronize() -> task: what is queued here and on the GPU, if that is in use
static Napi::Value synchronize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return start_task(
        info.Env(),
        [] {
          if (const DeviceApi* api = cuda_in_use()) api->synchronize();
        },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  });
}

void init_system(Napi::Env env, Napi::Object exports) {
  auto set = [&](const char* name, auto f) { exports.Set(name, Napi::Function::New(env, f, name)); };
  set("memory", memory);
  set("devices", devices);
  set("synchronize", synchronize);
  set("defaultDevice", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return guarded(info.Env(), [&] { return Napi::String::New(info.Env(), name_of(default_device())); });
  });
  set("setDefaultDevice", [](const Napi::CallbackInfo& info) {
    guarded(info.Env(), [&] { set_default_device(device_from_name(From<std::string>::js(info[0], "device"))); });
  });
  set("resetPeakMemory", [](const Napi::CallbackInfo& info) {
    on_device(info, 0, "resetPeakMemory", [](const DeviceApi& api) { api.reset_peak_memory(); });
  });
  set("emptyCache", [](const Napi::CallbackInfo& info) {
    on_device(info, 0, "emptyCache", [](const DeviceApi& api) { api.empty_cache(); });
  });
  set("setMemoryLimit", [](const Napi::CallbackInfo& info) {
    on_device(info, 1, "setMemoryLimit", [&](const DeviceApi& api) {
      int64_t bytes = From<int64_t>::js(info[0], "setMemoryLimit");
      check<ValueError>(bytes >= 0, "[setMemoryLimit] the limit must not be negative but is ", bytes);
      api.set_memory_limit(size_t(bytes));
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
  set("setErrorFactory", [](const Napi::CallbackInfo& info) {
    if (info[0].IsFunction()) data_of(info.Env()).make_error = Napi::Persistent(info[0].As<Napi::Function>());
  });
}

}  // namespace deem::node
