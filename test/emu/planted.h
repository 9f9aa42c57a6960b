// Programs with one bug each, and the same without it. The bug must be found, the clean twin must be silent.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "test.h"

namespace deem::test {

// How a bug shows. Every build that can show it must.
enum Shows : unsigned {
  kWrong = 1,    // a wrong result under one of the seeds (plain build)
  kError = 2,    // the emulator says so (every build)
  kAddress = 4,  // AddressSanitizer or UBSan report it
  kRace = 8,     // ThreadSanitizer reports it
  kCrash = 16,   // the process ends, with DEEM_EMU_GUARD=1 (plain build)
};

struct Plant {
  const char* name;
  unsigned shows;
  bool (*run)(bool bug);  // whether the result is right; errors may be thrown
};
void check_planted(const Plant& plant);

// PLANTED("missing barrier", kWrong | kRace) { ... return right; }  with `bug` in scope
#define PLANTED(name, shows) PLANTED_AT(name, shows, DEEM_TEST_JOIN(plant_at_line_, __LINE__))
#define PLANTED_AT(name, shows, f)                                                                          \
  static bool f(bool bug);                                                                                  \
  static void DEEM_TEST_JOIN(check_, f)() { ::deem::test::check_planted({"planted: " name, shows, &f}); }   \
  static const ::deem::test::Case DEEM_TEST_JOIN(case_, f){("planted: " name), &DEEM_TEST_JOIN(check_, f)}; \
  static bool f([[maybe_unused]] bool bug)

// Device memory of a test.
template <class T>
struct Device1D {
  explicit Device1D(int64_t n) : n(n) {
    cuda::cuda_check(cudaMalloc(reinterpret_cast<void**>(&data), size_t(n) * sizeof(T)), "test");
  }
  explicit Device1D(const std::vector<T>& v) : Device1D(int64_t(v.size())) {
    cuda::cuda_check(cudaMemcpy(data, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "test");
  }
  ~Device1D() {
    if (data) cudaFree(data);
  }
  Device1D(const Device1D&) = delete;
  Device1D& operator=(const Device1D&) = delete;
  std::vector<T> values() const {  // waits
    std::vector<T> v(static_cast<size_t>(n));
    cuda::cuda_check(cudaDeviceSynchronize(), "test");
    cuda::cuda_check(cudaMemcpy(v.data(), data, v.size() * sizeof(T), cudaMemcpyDeviceToHost), "test");
    return v;
  }
  operator T*() const { return data; }
  int64_t n;
  T* data = nullptr;
};

// 0, 1, 2 ... as floats.
inline std::vector<float> ramp(int n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (int i = 0; i < n; i++) v[size_t(i)] = float(i);
  return v;
}
inline bool is_reversed_ramp(const std::vector<float>& v) {
  for (size_t i = 0; i < v.size(); i++)
    if (v[i] != float(v.size() - 1 - i)) return false;
  return true;
}

}  // namespace deem::test
