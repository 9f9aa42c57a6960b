// Every error the engine throws on purpose. `code` reaches JavaScript as error.code; csrc/node/bind.h maps the types.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace deem {

struct Error : std::runtime_error {
  const char* code;
  Error(const char* code, const std::string& message) : std::runtime_error(message), code(code) {}
};

#define DEEM_ERROR(Name, CODE)                                          \
  struct Name : Error {                                                 \
    explicit Name(const std::string& message) : Error(CODE, message) {} \
  }
DEEM_ERROR(ShapeError, "ERR_SHAPE");                // shapes do not fit each other or the rule of the operation
DEEM_ERROR(DTypeError, "ERR_DTYPE");                // a dtype the operation does not take
DEEM_ERROR(DeviceError, "ERR_DEVICE");              // unknown, absent or mixed devices
DEEM_ERROR(ValueError, "ERR_VALUE");                // a number or option out of its range
DEEM_ERROR(IndexError, "ERR_INDEX");                // ids, labels or positions out of range
DEEM_ERROR(NotImplemented, "ERR_NOT_IMPLEMENTED");  // no kernel for this device
DEEM_ERROR(NoGradient, "ERR_NO_GRADIENT");          // a tracked tensor met an operation without a gradient
DEEM_ERROR(Aborted, "ERR_ABORTED");                 // the task's cancel flag was raised
DEEM_ERROR(OutOfMemory, "ERR_OUT_OF_MEMORY");       // the byte limit, or the system
DEEM_ERROR(IoError, "ERR_IO");                      // open, read, write, rename
DEEM_ERROR(FormatError, "ERR_FORMAT");              // a file that is not what it says
DEEM_ERROR(ConfigError, "ERR_CONFIG");              // unknown or missing configuration key
DEEM_ERROR(WeightsError, "ERR_WEIGHTS");            // missing, extra or misshapen weights
DEEM_ERROR(Disposed, "ERR_DISPOSED");               // use after dispose
#undef DEEM_ERROR

// Joins its arguments with operator<<: str("[op] rule but got ", shape).
template <class... Args>
std::string str(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// check<ShapeError>(x.ndim() == 4, "[conv2d] x must be [N, H, W, C] but has shape ", x.shape());
template <class E, class... Args>
void check(bool ok, const Args&... args) {
  if (!ok) [[unlikely]]
    throw E(str(args...));
}

}  // namespace deem
