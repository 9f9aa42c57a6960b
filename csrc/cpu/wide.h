// Numbers that this machine has no products of (f16 on any CPU, bf16 before AVX512_BF16) are multiplied as the f32 they are, and results
// are rounded once: by our own products on the way (cpu/gemm.h), for oneDNN in scratch memory. Its own emulation of bf16 is four times
// slower than its f32.
#pragma once
#include "core/kernel.h"
#include "core/memory.h"

namespace deem {

inline bool multiplies_short(DType t) { return t == DType::bf16 && current_isa() == kIsaCount - 1; }
inline bool multiplies(DType t) { return t == DType::f32 || multiplies_short(t); }

class Scratch {
 public:
  Scratch() = default;
  Scratch(int64_t numbers, DType dtype) { take(numbers, dtype); }
  ~Scratch() {
    if (data_) release(data_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  void take(int64_t numbers, DType dtype) {  // once
    bytes_ = size_t(numbers) * size_of(dtype);
    data_ = allocate_scratch(bytes_);
  }
  void* data() const { return data_; }  // null before take
  float* floats() const { return static_cast<float*>(data_); }

 private:
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

}  // namespace deem
