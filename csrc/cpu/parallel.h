// Threads of the CPU kernels. How work is cut up depends on sizes and the number of threads alone, so the same
// number gives the same bits; large work is cut finer than threads are many: on a shared machine one core may have half the speed of
// another, and so may memory. Each thread takes the pieces of its own share first, which one operation after the other lie in
// its core's cache, and then those that others have not come to.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

namespace deem {

int num_threads();  // what parallel_for uses; default: physical cores the process may use
// Lets the calling thread run on every core of the process again, after OMP_PROC_BIND tied it to one while libgomp loaded.
void unbind_this_thread();
bool spare_core();            // whether the process has more processors, hyper-threads too, than num_threads()
void set_num_threads(int n);  // throws ValueError outside 1..256

// ---- teams ------------------------------------------------------------------------------------------------------------

// Calls body(context, me, of) on `of` threads at once, me = 0..of - 1; the calling thread is number 0 and returns when all have. `of` is
// `threads` or less. An exception must not leave body.
using TeamBody = void (*)(void* context, int64_t me, int64_t of);
void run_team(int64_t threads, TeamBody body, void* context);
bool in_team();  // whether the calling thread runs the body of a team, which starts no team of its own

// A thread that is about to wait for the engine's: from now on it is number 1 of the engine's teams of two, unless that is not wanted, another
// thread is lent already, or threads are not two.
class LentThread {
 public:
  explicit LentThread(bool wanted);
  ~LentThread();
  LentThread(const LentThread&) = delete;
  // Returns when over() says so, or nothing came for long, or OpenMP takes over.
  void work_until(const std::function<bool()>& over);

 private:
  bool lent_;
};
// body(context, 0, 2) here and body(context, 1, 2) on the lent thread, or here where it does not come. False, and nothing was called, where
// none is lent.
bool run_with_lent_thread(TeamBody body, void* context);

void openmp_takes_over();      // a library is about to start threads of OpenMP's for the calling thread
int64_t teams_of_openmp();     // that the calling thread has started so far, or libraries for it
int64_t teams_of_libraries();  // those of libraries alone

void give_way();  // to other threads of this core

// Waits for what another thread is about to do.
template <class F>
inline void wait_until(F&& ready) {
  for (int rounds = 0; !ready(); rounds++) {
    if (rounds < 4096) __builtin_ia32_pause();
    else give_way();
  }
}

constexpr int64_t kPieces = 4;  // of a thread, where work is large

template <class F>
[[gnu::always_inline]] inline void on_team(int64_t threads, F& body) {
  run_team(
      threads, [](void* context, int64_t me, int64_t of) { (*static_cast<F*>(context))(me, of); }, &body);
}

// Items 0..n - 1 for threads to take, each once.
class Shares {
 public:
  [[gnu::always_inline]] inline Shares(int64_t n, int64_t threads) : count_(threads < kMost ? threads : kMost) {
    for (int64_t i = 0; i < count_; i++) {
      shares_[i].next.store(n * i / count_, std::memory_order_relaxed);
      shares_[i].end = n * (i + 1) / count_;
    }
  }
  // The next one for thread `me`, or -1 where all are taken.
  [[gnu::always_inline]] inline int64_t take(int64_t me) {
    for (int64_t i = 0; i < count_; i++) {
      Share& s = shares_[(me + i) % count_];
      if (s.next.load(std::memory_order_relaxed) >= s.end) continue;
      if (const int64_t item = s.next++; item < s.end) return item;
    }
    return -1;
  }

 private:
  static constexpr int64_t kMost = 16;
  struct alignas(64) Share {  // a cache line, which threads would take from each other
    std::atomic<int64_t> next;
    int64_t end;
  };
  int64_t count_;
  Share shares_[kMost];
};

// Calls f(begin, end) on disjoint ranges that cover 0..n. `cost` is a rough number of scalar operations per item; work
// under about 32k operations stays on the calling thread, where waking a team would cost more than it saves, and work that may still lie in
// a core's own cache goes to the same threads each time.
template <class F>
[[gnu::always_inline]] inline void parallel_for(int64_t n, int64_t cost, F&& f) {
  constexpr int64_t kLarge = 1 << 22;
  int64_t threads = n * cost < 32768 || in_team() ? 1 : num_threads();
  if (threads > n) threads = n;
  if (threads <= 1) {
    if (n > 0) f(int64_t(0), n);
    return;
  }
  const bool fixed = n * cost < kLarge;
  const int64_t pieces = fixed ? threads : n < kPieces * threads ? n : kPieces * threads;
  auto piece = [&](int64_t i) { f(n * i / pieces, n * (i + 1) / pieces); };
  if (fixed) {
    auto body = [&](int64_t me, int64_t of) {
      for (int64_t i = me; i < pieces; i += of) piece(i);
    };
    return on_team(threads, body);
  }
  Shares shares(pieces, threads);
  auto body = [&](int64_t me, int64_t) {
    for (int64_t i; (i = shares.take(me)) >= 0;) piece(i);
  };
  on_team(threads, body);
}

// Calls first(i, thread) for i in 0..n and, when all of those are done, then(i, thread) for i in 0..m, on up to `threads` threads; `thread`, below `threads`, is whose scratch memory to use.
template <class F, class G>
[[gnu::always_inline]] inline void parallel_phases(int64_t threads, int64_t n, F&& first, int64_t m, G&& then) {
  if (threads == 1) {
    for (int64_t i = 0; i < n; i++) first(i, int64_t(0));
    for (int64_t i = 0; i < m; i++) then(i, int64_t(0));
    return;
  }
  std::atomic<int64_t> done{0};
  Shares before(n, threads), after(m, threads);
  auto body = [&](int64_t me, int64_t) {
    for (int64_t i; (i = before.take(me)) >= 0; done++) first(i, me);
    wait_until([&] { return done == n; });
    for (int64_t i; (i = after.take(me)) >= 0;) then(i, me);
  };
  on_team(threads, body);
}

// Calls f(i, thread) for i in 0..n in the same way.
template <class F>
[[gnu::always_inline]] inline void parallel_items(int64_t threads, int64_t n, F&& f) {
  if (threads == 1) {
    for (int64_t i = 0; i < n; i++) f(i, int64_t(0));
    return;
  }
  Shares shares(n, threads);
  auto body = [&](int64_t me, int64_t) {
    for (int64_t i; (i = shares.take(me)) >= 0;) f(i, me);
  };
  on_team(threads, body);
}

// parallel_for in many chunks, however little the work, where its speed is that of the memory, which serves one thread better than another.
template <class F>
[[gnu::always_inline]] inline void parallel_chunks(int64_t n, int64_t cost, F&& f) {
  const int64_t threads = n * cost < 32768 || in_team() ? 1 : num_threads();
  if (threads <= 1) {
    if (n > 0) f(int64_t(0), n);
    return;
  }
  const int64_t chunks = n < 16 * threads ? n : 16 * threads;
  parallel_items(threads, chunks, [&](int64_t c, int64_t) { f(n * c / chunks, n * (c + 1) / chunks); });
}

}  // namespace deem
