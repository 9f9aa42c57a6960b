#include "node/bind.h"

#include <new>

namespace deem::node {

static Napi::Error make(Napi::Env env, const char* code, const std::string& message) {
  AddonData& data = data_of(env);
  if (!data.make_error.IsEmpty())
    return Napi::Error(env, data.make_error.Call({Napi::String::New(env, code), Napi::String::New(env, message)}));
  Napi::Error e = Napi::Error::New(env, message);
  e.Set("code", Napi::String::New(env, code));
  return e;
}

Napi::Error to_js_error(Napi::Env env, std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return make(env, e.code, e.what());
  } catch (const std::bad_alloc&) {
    return make(env, "ERR_OUT_OF_MEMORY", "the system is out of memory");
  } catch (const std::exception& e) {
    return make(env, "ERR_INTERNAL", e.what());
  } catch (...) {
    return make(env, "ERR_INTERNAL", "an unknown error");
  }
}

}  // namespace deem::node
