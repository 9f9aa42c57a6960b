// Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// A number is a pure function of (seed, stream, element), so any device, thread count or resume gives the same one.
#pragma once
#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace deem {

DEEM_INLINE std::array<uint32_t, 4> philox(uint64_t seed, uint64_t stream, uint64_t element) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  std::array<uint32_t, 4> c{uint32_t(element), uint32_t(element >> 32), uint32_t(stream), uint32_t(stream >> 32)};
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = uint64_t(0xD2511F53) * c[0], p1 = uint64_t(0xCD9E8D57) * c[2];
    c = {uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k1, uint32_t(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// [0, 1) with 24 bits.
DEEM_INLINE float uniform01(uint32_t bits) { return float(bits >> 8) * 5.9604644775390625e-8f; }

// The draws of the running step: seed and the number of streams taken so far. Dropout and stochastic depth take one
// stream a call, in the order of the calls; a step starts with RngScope(seed, step).
struct RngState {
  uint64_t seed = 0;
  uint64_t next_stream = 0;
};
RngState rng_state();
void set_rng_state(RngState s);
uint64_t take_stream();  // throws ValueError outside an RngScope: no draw without a seed

class RngScope {
 public:
  RngScope(uint64_t seed, uint64_t step);
  ~RngScope();
  RngScope(const RngScope&) = delete;

 private:
  RngState before_;
  bool active_before_;
};

}  // namespace deem
