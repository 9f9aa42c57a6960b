// Threads of the CPU kernels. Plain OpenMP underneath; the split is static, so the same thread count gives the same bits.
#pragma once
#include <omp.h>

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

// Calls first(t) and, when all of those are done, then(t), for t in 0..n, on up to n threads.
template <class F, class G>
[[gnu::always_inline]] inline void parallel_phases(int64_t n, F&& first, G&& then) {
  if (n == 1) {
    first(int64_t(0));
    then(int64_t(0));
    return;
  }
#pragma omp parallel num_threads(int(n))
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    for (int64_t t = me; t < n; t += all) first(t);
#pragma omp barrier
    for (int64_t t = me; t < n; t += all) then(t);
  }
}

// parallel_for in chunks that threads take as they come, for work whose speed the memory sets: it serves one thread better than another.
// Only for items whose results do not depend on each other's.
template <class F>
[[gnu::always_inline]] inline void parallel_chunks(int64_t n, int64_t cost, F&& f) {
  const int threads = n * cost < 32768 ? 1 : num_threads();
  if (threads <= 1) {
    if (n > 0) f(int64_t(0), n);
    return;
  }
  const int64_t chunks = n < 16 * threads ? n : 16 * threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t c = 0; c < chunks; c++) f(n * c / chunks, n * (c + 1) / chunks);
}

}  // namespace deem
