// Threads of the CPU kernels. Plain OpenMP underneath; the split is static, so the same thread count gives the same bits.
#pragma once
#include <cstdint>

namespace deem {

int num_threads();  // what parallel_for uses; default: physical cores the process may use
// Lets the calling thread run on every core of the process again, after OMP_PROC_BIND tied it to one while libgomp loaded.
void unbind_this_thread();
void set_num_threads(int n);  // throws ValueError outside 1..256

// Calls f(begin, end) on disjoint ranges that cover 0..n. `cost` is a rough number of scalar operations per item; work
// under about 32k operations stays on the calling thread, where waking a team would cost more than it saves.
template <class F>
[[gnu::always_inline]] inline void parallel_for(int64_t n, int64_t cost, F&& f) {
  int threads = n * cost < 32768 ? 1 : num_threads();
  if (threads > n) threads = int(n);
  if (threads <= 1) {
    if (n > 0) f(int64_t(0), n);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; t++) f(n * t / threads, n * (t + 1) / threads);
}

}  // namespace deem
