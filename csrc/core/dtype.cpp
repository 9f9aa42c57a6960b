#include "core/dtype.h"

namespace deem {

static constexpr const char* kNames[] = {"f32", "bf16", "f16", "i64", "i32", "u8"};

const char* name_of(DType t) { return kNames[int(t)]; }

DType dtype_from_name(const std::string& name) {
  for (int i = 0; i < 6; i++)
    if (name == kNames[i]) return DType(i);
  throw DTypeError("unknown dtype '" + name + "', known are f32, bf16, f16, i64, i32, u8");
}

void throw_not_float(const char* op, DType t) {
  throw DTypeError(str("[", op, "] needs a floating dtype but got ", name_of(t)));
}

}  // namespace deem
