// Tensors in files, for scripts, checkpoints and parity.
#include "core/safetensors.h"
#include "node/model.h"
#include "node/task.h"

namespace deem::node {

// readTensors(path) -> task of {tensors, metadata}; the tensors are copies, so the file may change afterwards.
static Napi::Value read_tensors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto path = From<std::string>::js(info[0], "readTensors");
    auto tensors = std::make_shared<std::vector<NamedTensor>>();
    auto metadata = std::make_shared<std::map<std::string, std::string>>();
    return start_task(
        info.Env(),
        [=] {
          SafetensorsFile file = SafetensorsFile::open(path);
          for (const std::string& name : file.names()) {
            tensors->push_back({name, file.tensor(name).clone()});
            report_progress(int64_t(tensors->size()), int64_t(file.names().size()));
            poll_cancel();
          }
          *metadata = file.metadata();
        },
        [=](Napi::Env env) -> Napi::Value {
          auto out = Napi::Object::New(env), named = Napi::Object::New(env), meta = Napi::Object::New(env);
          for (auto& t : *tensors) set_own(named, t.name, JsTensor::wrap(env, t.tensor));
          for (auto& [key, value] : *metadata) set_own(meta, key, Napi::String::New(env, value));
          out.Set("tensors", named);
          out.Set("metadata", meta);
          return out;
        });
  });
}

// writeTensors(path, tensors, metadata) -> task
static Napi::Value write_tensors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto path = From<std::string>::js(info[0], "writeTensors");
    std::vector<NamedTensor> tensors;
    for (auto& [name, t] : tensors_from_js(info[1], "writeTensors")) tensors.push_back({name, t});
    std::map<std::string, std::string> metadata;
    if (info[2].IsObject()) {
      auto object = info[2].As<Napi::Object>();
      auto keys = object.GetPropertyNames();
      for (uint32_t i = 0; i < keys.Length(); i++) {
        std::string key = keys.Get(i).ToString();
        metadata[key] = From<std::string>::js(object.Get(key), "writeTensors");
      }
    }
    return start_task(
        info.Env(), [=] { write_safetensors(path, tensors, metadata); },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  });
}

void init_files(Napi::Env env, Napi::Object exports) {
  exports.Set("readTensors", Napi::Function::New(env, read_tensors, "readTensors"));
  exports.Set("writeTensors", Napi::Function::New(env, write_tensors, "writeTensors"));
}

}  // namespace deem::node
