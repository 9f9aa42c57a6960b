#include "node/tensor.h"

#include <cstring>

#include "node/bind.h"
#include "node/task.h"

namespace deem::node {

static constexpr napi_type_tag kTag = {0x6465656d74656e73, 0x6f72206f66206a73};

Napi::Value JsTensor::wrap(Napi::Env env, const Tensor& t) {
  Tensor copy = t;
  return data_of(env).tensor.New({Napi::External<Tensor>::New(env, &copy)});
}

Tensor JsTensor::get(Napi::Value v, const char* what) {
  bool ok = false;
  if (v.IsObject()) napi_check_object_type_tag(v.Env(), v, &kTag, &ok);
  check<DTypeError>(ok, "[", what, "] needs a Tensor");
  return Unwrap(v.As<Napi::Object>())->tensor(what);
}

JsTensor::JsTensor(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "tensors are made by tensor() and by operations, not by new");
  t_ = *info[0].As<Napi::External<Tensor>>().Data();
  napi_type_tag_object(info.Env(), info.This(), &kTag);
  untold_ = data_of(info.Env()).untold;
  bytes_ = int64_t(t_.nbytes());
  tell(info.Env(), bytes_);
}

// V8 collects garbage for 5 to 10 ms whenever it hears of 64 MB more than it last kept, also where the next call frees them.
// So it hears only of what stays: tensors that come and go within this many bytes are never mentioned.
void JsTensor::tell(Napi::BasicEnv env, int64_t bytes) {
  constexpr int64_t kQuiet = 128 << 20;
  *untold_ += bytes;
  if (*untold_<kQuiet&& * untold_> - kQuiet) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, *untold_);
  *untold_ = 0;
}

void JsTensor::drop(Napi::BasicEnv env) {
  t_ = Tensor();
  if (bytes_) tell(env, -bytes_);
  bytes_ = 0;
}

void JsTensor::Finalize(Napi::BasicEnv env) { drop(env); }

const Tensor& JsTensor::tensor(const char* what) const {
  check<Disposed>(t_.defined(), "[", what, "] the tensor was disposed");
  return t_;
}

Napi::Value JsTensor::dispose(const Napi::CallbackInfo& info) {
  drop(info.Env());
  return info.Env().Undefined();
}

Napi::Value JsTensor::disposed(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), !t_.defined()); }

Napi::Value JsTensor::shape(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Shape& s = tensor("shape").shape();
    auto out = Napi::Array::New(info.Env(), size_t(s.size()));
    for (int i = 0; i < s.size(); i++) out.Set(uint32_t(i), double(s[i]));
    return out;
  });
}

Napi::Value JsTensor::dtype(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::String::New(info.Env(), name_of(tensor("dtype").dtype())); });
}

Napi::Value JsTensor::device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::String::New(info.Env(), name_of(tensor("device").device())); });
}

Napi::Value JsTensor::tracked(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::Boolean::New(info.Env(), tensor("tracked").tracked()); });
}

Napi::Value JsTensor::requires_grad(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::Boolean::New(info.Env(), tensor("requiresGrad").requires_grad()); });
}

// Everything that reads or writes a tensor waits its turn on the engine thread: a queued task may be using it.
Napi::Value JsTensor::set_requires_grad(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Tensor t = tensor("setRequiresGrad");
    bool on = From<bool>::js(info[0], "setRequiresGrad");
    Engine::get().run_brief([&] { t.set_requires_grad(on); });
    return info.Env().Undefined();
  });
}

template <class Array>
static Napi::Value copy_out(Napi::Env env, const Tensor& t) {
  auto out = Array::New(env, size_t(t.numel()));
  std::memcpy(out.Data(), t.raw(), t.nbytes());
  return out;
}

Napi::Value JsTensor::read(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    Tensor t = tensor("read");
    Engine::get().run_sync([&] {
      t = t.to(Device::cpu);
      if (!t.is_contiguous()) t = t.clone();
    });
    return elements(env, t);
  });
}

// The same as a task: nothing waits.
Napi::Value JsTensor::data(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Tensor t = tensor("data");
    auto copy = std::make_shared<Tensor>();
    return start_task(
        info.Env(), [=] { *copy = host_copy(t); },
        [copy](Napi::Env env) -> Napi::Value { return elements(env, *copy); });
  });
}

Napi::Value JsTensor::elements(Napi::Env env, const Tensor& t) {
  switch (t.dtype()) {
    case DType::f32: return copy_out<Napi::Float32Array>(env, t);
    case DType::bf16:
    case DType::f16: return copy_out<Napi::Uint16Array>(env, t);
    case DType::i64: return copy_out<Napi::BigInt64Array>(env, t);
    case DType::i32: return copy_out<Napi::Int32Array>(env, t);
    case DType::u8: return copy_out<Napi::Uint8Array>(env, t);
  }
  return env.Undefined();
}

Napi::Value JsTensor::item(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Tensor t = tensor("item");
    double v = 0;
    Engine::get().run_sync([&] { v = t.item(); });
    return Napi::Number::New(info.Env(), v);
  });
}

Napi::Value JsTensor::grad(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Tensor t = tensor("grad"), g;
    Engine::get().run_brief([&] { g = t.grad(); });
    return g ? wrap(info.Env(), g) : info.Env().Null();
  });
}

Napi::Value JsTensor::clear_grad(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Tensor t = tensor("clearGrad");
    Engine::get().run_brief([&] { t.clear_grad(); });
    return info.Env().Undefined();
  });
}

Napi::Value JsTensor::detach(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return wrap(info.Env(), tensor("detach").detach()); });
}

// tensor(data, shape, dtype, device): copies a typed array whose element type fits the dtype (Uint16Array: bits of bf16 or f16).
static Napi::Value make_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check<ValueError>(info[0].IsTypedArray(), "[tensor] data must be a typed array");
    auto array = info[0].As<Napi::TypedArray>();
    Shape shape = From<Shape>::js(info[1], "tensor");
    DType dtype = From<DType>::js(info[2], "tensor");
    Device device = device_for(info[3], dtype, "tensor");
    napi_typedarray_type type = array.TypedArrayType();
    bool fits = false;
    switch (dtype) {
      case DType::f32: fits = type == napi_float32_array; break;
      case DType::bf16:
      case DType::f16: fits = type == napi_uint16_array; break;
      case DType::i64: fits = type == napi_bigint64_array; break;
      case DType::i32: fits = type == napi_int32_array; break;
      case DType::u8: fits = type == napi_uint8_array || type == napi_uint8_clamped_array; break;
    }
    check<DTypeError>(fits, "[tensor] the typed array given does not hold ", dtype);
    check<ShapeError>(shape.numel() == int64_t(array.ElementLength()), "[tensor] shape ", shape, " needs ",
                      shape.numel(), " values but got ", array.ElementLength());
    Tensor t = Tensor::empty(shape, dtype);
    std::memcpy(t.raw(), static_cast<char*>(array.ArrayBuffer().Data()) + array.ByteOffset(), t.nbytes());
    if (device != Device::cpu) Engine::get().run_sync([&] { t = t.to(device); });
    return JsTensor::wrap(info.Env(), t);
  });
}

void JsTensor::define(Napi::Env env, Napi::Object exports) {
  Napi::Function ctor =
      DefineClass(env, "NativeTensor",
                  {InstanceMethod<&JsTensor::dispose>("dispose"), InstanceAccessor<&JsTensor::disposed>("disposed"),
                   InstanceAccessor<&JsTensor::shape>("shape"), InstanceAccessor<&JsTensor::dtype>("dtype"),
                   InstanceAccessor<&JsTensor::device>("device"), InstanceAccessor<&JsTensor::tracked>("tracked"),
                   InstanceAccessor<&JsTensor::requires_grad>("requiresGrad"),
                   InstanceMethod<&JsTensor::set_requires_grad>("setRequiresGrad"),
                   InstanceMethod<&JsTensor::read>("read"), InstanceMethod<&JsTensor::data>("data"),
                   InstanceMethod<&JsTensor::item>("item"), InstanceMethod<&JsTensor::grad>("grad"),
                   InstanceMethod<&JsTensor::clear_grad>("clearGrad"), InstanceMethod<&JsTensor::detach>("detach")});
  data_of(env).tensor = Napi::Persistent(ctor);
  exports.Set("NativeTensor", ctor);
  exports.Set("tensor", Napi::Function::New(env, make_tensor, "tensor"));
}

void init_tensor(Napi::Env env, Napi::Object exports) { JsTensor::define(env, exports); }

}  // namespace deem::node
