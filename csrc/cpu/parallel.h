// Threads of the CPU kernels. Plain OpenMP underneath. How work is cut up depends on sizes and the number of threads alone, so the same
// number gives the same bits; large work is cut finer than threads are many, and they take pieces as they come: on a shared
// machine one core may have half the speed of another, and so may memory.
#pragma once
#include <omp.h>

#include <cstdint>

namespace deem {

int num_threads();  // what parallel_for uses; default: physical cores the process may use
// Lets the calling thread run on every core of the process again, after OMP_PROC_BIND tied it to one while libgomp loaded.
void unbind_this_thread();
bool spare_core();            // whether the process has more processors, hyper-threads too, than num_threads()
void set_num_threads(int n);  // throws ValueError outside 1..256

constexpr int64_t kPieces = 4;  // of a thread, where work is large

// Calls f(begin, end) on disjoint ranges that cover 0..n. `cost` is a rough number of scalar operations per item; work
// under about 32k operations stays on the calling thread, where waking a team would cost more than it saves, and work that may still lie in
// a core's own cache goes to the same threads each time.
template <class F>
[[gnu::always_inline]] inline void parallel_for(int64_t n, int64_t cost, F&& f) {
  constexpr int64_t kLarge = 1 << 22;
  int64_t threads = n * cost < 32768 ? 1 : num_threads();
  if (threads > n) threads = n;
  if (threads <= 1) {
    if (n > 0) f(int64_t(0), n);
    return;
  }
  if (n * cost < kLarge) {
#pragma omp parallel for num_threads(int(threads)) schedule(static, 1)
    for (int64_t t = 0; t < threads; t++) f(n * t / threads, n * (t + 1) / threads);
    return;
  }
  const int64_t pieces = n < kPieces * threads ? n : kPieces * threads;
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, 1)
  for (int64_t i = 0; i < pieces; i++) f(n * i / pieces, n * (i + 1) / pieces);
}

// Calls first(i, thread) for i in 0..n and, when all of those are done, then(i, thread) for i in 0..m, on up to `threads` threads, which take
// items as they come; `thread`, below `threads`, is whose scratch memory to use.
template <class F, class G>
[[gnu::always_inline]] inline void parallel_phases(int64_t threads, int64_t n, F&& first, int64_t m, G&& then) {
  if (threads == 1) {
    for (int64_t i = 0; i < n; i++) first(i, int64_t(0));
    for (int64_t i = 0; i < m; i++) then(i, int64_t(0));
    return;
  }
#pragma omp parallel num_threads(int(threads))
  {
    const int64_t me = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n; i++) first(i, me);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < m; i++) then(i, me);
  }
}

// Calls f(i, thread) for i in 0..n in the same way.
template <class F>
[[gnu::always_inline]] inline void parallel_items(int64_t threads, int64_t n, F&& f) {
  if (threads == 1) {
    for (int64_t i = 0; i < n; i++) f(i, int64_t(0));
    return;
  }
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, 1)
  for (int64_t i = 0; i < n; i++) f(i, int64_t(omp_get_thread_num()));
}

// parallel_for in many chunks, however little the work, where its speed is that of the memory, which serves one thread better than another.
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
