// Element types. bf16 and f16 are storage formats: kernels widen to float, compute, and round once on the way back.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <ostream>

#include "core/error.h"

namespace deem {

enum class DType : uint8_t { f32, bf16, f16, i64, i32, u8 };

// always_inline: kernels include this header in objects compiled for different instruction sets, and a shared
// out-of-line copy could carry instructions the machine lacks.
#define DEEM_INLINE [[gnu::always_inline]] inline

struct bf16 {
  uint16_t bits;
  DEEM_INLINE operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
  bf16() = default;
  // Round to nearest even; NaN stays NaN.
  DEEM_INLINE explicit bf16(float f) {
    // By masks: of a choice between two numbers the compiler makes one between their upper halves, and narrows the mask for it.
    uint32_t u = std::bit_cast<uint32_t>(f), nan = f != f ? ~0u : 0u;
    bits = uint16_t(((u + ((0x7fff + (u >> 16 & 1)) & ~nan)) | (nan & 0x400000)) >> 16);
  }
};

struct f16 {
  uint16_t bits;
  f16() = default;
  DEEM_INLINE operator float() const {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
      float v = float(mantissa) * 5.9604644775390625e-8f;
      return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | sign);
    }
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  }
  // Round to nearest even; overflow becomes infinity, tiny values become subnormal.
  DEEM_INLINE explicit f16(float f) {
    uint32_t u = std::bit_cast<uint32_t>(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) {
      bits = uint16_t(sign | 0x7e00 | (a >> 13 & 0x3ff));
      return;
    }
    if (a >= 0x477ff000) {
      bits = uint16_t(sign | 0x7c00);
      return;
    }
    if (a < 0x38800000) {  // below the smallest normal half: let float addition round at 2^-24
      float v = std::bit_cast<float>(a) + 0.5f;
      bits = uint16_t(sign | (std::bit_cast<uint32_t>(v) - 0x3f000000));
      return;
    }
    uint32_t r = a - 0x38000000 + 0xfff + (a >> 13 & 1);
    bits = uint16_t(sign | r >> 13);
  }
};

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct dtype_of<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_of<uint8_t> {
  static constexpr DType value = DType::u8;
};

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::u8: return 1;
  }
  return 0;
}
constexpr bool is_float(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f16; }
const char* name_of(DType t);
DType dtype_from_name(const std::string& name);  // throws DTypeError
inline std::ostream& operator<<(std::ostream& out, DType t) { return out << name_of(t); }

[[noreturn]] void throw_not_float(const char* op, DType t);

// Calls f with a value of the storage type: dispatch_float(x.dtype(), "layer_norm", [&]<class T>(T) { ... }).
template <class F>
DEEM_INLINE void dispatch_float(DType t, const char* op, F&& f) {
  switch (t) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    default: throw_not_float(op, t);
  }
}

}  // namespace deem
