#include "core/rng.h"

namespace deem {

static thread_local RngState state;
static thread_local bool active = false;

RngState rng_state() { return state; }
void set_rng_state(RngState s) { state = s; }

uint64_t take_stream() {
  check<ValueError>(active, "[random] a draw was asked for but no seed was given");
  return state.next_stream++;
}

// Steps are 2^32 streams apart.
RngScope::RngScope(uint64_t seed, uint64_t step) : before_(state), active_before_(active) {
  state = {seed, step << 32};
  active = true;
}

RngScope::~RngScope() {
  state = before_;
  active = active_before_;
}

}  // namespace deem
