// Runs an operation's CPU kernel and its CUDA kernel on the same inputs and compares what they write.
//   Parity p("rows 3, cols 33");
//   auto x = p.random(3 * 33, DType::bf16), y = p.output(3 * 33, DType::bf16);
//   p.run([&](Device d) { softmax_kernel(d, {.x = x(d), .y = y(d), .rows = 3, .cols = 33, .dtype = DType::bf16}); });
//   p.close(y);
// The CUDA kernel runs once for each seed in EMU_SEEDS ("0,1,2" if unset) and must write the same bits each time.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "core/kernel.h"
#include "test.h"

namespace deem::test {

// Converts to whatever pointer the arguments take.
struct Address {
  void* p;
  template <class T>
  operator T*() const {
    return static_cast<T*>(p);
  }
};

class Parity;

// The same elements in host and in device memory. An empty one is a null pointer.
class Buffer {
 public:
  Buffer() = default;
  Address operator()(Device d) const;
  Address operator()(Device d, int64_t element) const;  // address of an element
  explicit operator bool() const { return state_ != nullptr; }
  // What the CPU works on, to fill before run(); and the device's elements as doubles, after it.
  template <class T>
  T* host() const {
    return static_cast<T*>(host_data());
  }
  std::vector<double> device_values() const;
  std::vector<double> host_values() const;
  int64_t size() const;
  DType dtype() const;

 private:
  friend class Parity;
  struct State;
  void* host_data() const;
  State* state_ = nullptr;
};

class Parity {
 public:
  explicit Parity(std::string name);  // of the case, for messages
  ~Parity();
  Parity(const Parity&) = delete;
  Parity& operator=(const Parity&) = delete;

  Buffer random(int64_t n, DType dtype = DType::f32, double scale = 1, double offset = 0);  // uniform, offset +- scale
  Buffer integers(int64_t n, DType dtype, int64_t low, int64_t high);                       // low <= v < high
  Buffer output(int64_t n, DType dtype = DType::f32);                                       // NaN until written
  Buffer zeros(int64_t n, DType dtype = DType::f32);
  template <class T>
  Buffer of(const std::vector<T>& values) {
    return raw(values.data(), int64_t(values.size()), dtype_of<T>::value);
  }
  Buffer raw(const void* values, int64_t n, DType dtype);

  // f(Device::cpu) once, f(Device::cuda) for each seed from the same start, then waits and fetches all buffers.
  void run(const std::function<void(Device)>& f);

  // |cuda - cpu| <= tolerance * max(1, largest |cpu|) everywhere; NaN only where the CPU has it. By default the contract's
  // tolerance of the dtype: f32 2e-6, bf16 2^-8, f16 2^-11 (of the largest value), integers 0.
  void close(const Buffer& b, double tolerance = -1, const char* what = "");
  void same(const Buffer& b, const char* what = "") { close(b, 0, what); }

 private:
  Buffer add(int64_t n, DType dtype);
  std::string name_;
  std::deque<Buffer::State> buffers_;
  uint64_t random_ = 0x9e3779b97f4a7c15ull;
};

std::vector<uint32_t> seeds();  // EMU_SEEDS
// Puts this program's CUDA kernels into their slots; Parity does it by itself.
void register_cuda_kernels();

}  // namespace deem::test
