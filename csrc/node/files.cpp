// Tensors in files, for scripts, checkpoints and parity.
#include "core/file.h"
#include "core/safetensors.h"
#include "node/model.h"
#include "node/task.h"

namespace deem::node {

// Where a tensor lies in a file that is no safetensors file.
struct Placed {
  std::string name;
  DType dtype;
  Shape shape, strides;
  uint64_t start;
};

static std::vector<Placed> layout_from_js(Napi::Value v) {
  check<ValueError>(v.IsArray(), "[mapTensors] the layout must be a list");
  auto list = v.As<Napi::Array>();
  std::vector<Placed> out;
  for (uint32_t i = 0; i < list.Length(); i++) {
    check<ValueError>(list.Get(i).IsObject(), "[mapTensors] the layout must be a list of objects");
    auto o = list.Get(i).As<Napi::Object>();
    out.push_back({From<std::string>::js(o.Get("name"), "mapTensors"), From<DType>::js(o.Get("dtype"), "mapTensors"),
                   From<Shape>::js(o.Get("shape"), "mapTensors"), From<Shape>::js(o.Get("strides"), "mapTensors"),
                   uint64_t(From<int64_t>::js(o.Get("start"), "mapTensors"))});
  }
  return out;
}

// A task of {tensors, metadata}.
static Napi::Value tensors_task(Napi::Env env, std::function<void(std::vector<NamedTensor>&)> read,
                                std::shared_ptr<std::map<std::string, std::string>> metadata) {
  auto tensors = std::make_shared<std::vector<NamedTensor>>();
  return start_task(
      env, [=] { read(*tensors); },
      [=](Napi::Env env) -> Napi::Value {
        auto out = Napi::Object::New(env), named = Napi::Object::New(env), meta = Napi::Object::New(env);
        for (auto& t : *tensors) set_own(named, t.name, JsTensor::wrap(env, t.tensor));
        for (auto& [key, value] : *metadata) set_own(meta, key, Napi::String::New(env, value));
        out.Set("tensors", named);
        out.Set("metadata", meta);
        return out;
      });
}

// readTensors(path, mapped) -> task of {tensors, metadata} of a safetensors file. Copies, so that the file may change
// afterwards, unless mapped.
static Napi::Value read_tensors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto path = From<std::string>::js(info[0], "readTensors");
    bool mapped = From<bool>::js(info[1], "readTensors");
    auto metadata = std::make_shared<std::map<std::string, std::string>>();
    return tensors_task(
        info.Env(),
        [=](std::vector<NamedTensor>& out) {
          SafetensorsFile file = SafetensorsFile::open(path);
          for (const std::string& name : file.names()) {
            out.push_back({name, mapped ? file.tensor(name) : file.tensor(name).clone()});
            report_progress(int64_t(out.size()), int64_t(file.names().size()));
            poll_cancel();
          }
          *metadata = file.metadata();
        },
        metadata);
  });
}

// mapTensors(path, layout) -> task of {tensors, metadata}: tensors where they lie in any file.
static Napi::Value map_tensors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto path = From<std::string>::js(info[0], "mapTensors");
    std::vector<Placed> layout = layout_from_js(info[1]);
    return tensors_task(
        info.Env(),
        [=](std::vector<NamedTensor>& out) {
          auto file = MappedFile::open(path);
          for (const Placed& t : layout)
            out.push_back({t.name, file->tensor(t.start, t.dtype, t.shape, t.strides,
                                                str("'", path, "': tensor '", t.name, "': "))});
        },
        std::make_shared<std::map<std::string, std::string>>());
  });
}

// writeTensors(path, tensors, metadata, dtype) -> task; dtype '' keeps each tensor's own
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
    std::string name = From<std::string>::js(info[3], "writeTensors");
    std::optional<DType> dtype;
    if (!name.empty()) dtype = dtype_from_name(name);
    return start_task(
        info.Env(), [=] { write_safetensors(path, tensors, metadata, dtype); },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
  });
}

void init_files(Napi::Env env, Napi::Object exports) {
  exports.Set("readTensors", Napi::Function::New(env, read_tensors, "readTensors"));
  exports.Set("mapTensors", Napi::Function::New(env, map_tensors, "mapTensors"));
  exports.Set("writeTensors", Napi::Function::New(env, write_tensors, "writeTensors"));
}

}  // namespace deem::node
