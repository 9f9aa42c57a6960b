#include "core/engine.h"

#include <semaphore.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "cpu/parallel.h"

namespace deem {

static thread_local CancelFlag* running_flag = nullptr;
static thread_local const ProgressSink* running_progress = nullptr;
static thread_local bool on_engine = false;

void poll_cancel() {
  if (running_flag && running_flag->raised.load(std::memory_order_relaxed)) [[unlikely]]
    throw Aborted("the task was aborted");
}

void report_progress(int64_t done, int64_t total) {
  if (running_progress && *running_progress) (*running_progress)(done, total);
}

// Sleeping and being woken takes a thread of a virtual machine 50 us and more, longer than many operations: whoever waits looks for
// `ready` first.
using Clock = std::chrono::steady_clock;
template <class F>
static void watch(std::chrono::microseconds longest, F&& ready) {
  const auto end = Clock::now() + longest;
  while (!ready() && Clock::now() < end)
    for (int i = 0; i < 16; i++) __builtin_ia32_pause();
}

struct Engine::Impl {
  struct Task {
    std::function<void()> run;
    std::shared_ptr<CancelFlag> cancel;
    ProgressSink progress;
  };
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Task> queue;
  std::atomic<size_t> queued{0};  // queue.size(), for who does not hold the lock
};

Engine::Engine() : p_(new Impl) {
  std::thread([p = p_] {
    on_engine = true;
    bool small = false;
    for (;;) {
      Impl::Task task;
      // Not after large tasks where threads are as many as cores: the others look for work too then, and whoever is to post
      // some needs a core.
      if (small || spare_core())
        watch(std::chrono::microseconds(50), [&] { return p->queued.load(std::memory_order_relaxed) > 0; });
      {
        std::unique_lock lock(p->mutex);
        p->wake.wait(lock, [&] { return !p->queue.empty(); });
        task = std::move(p->queue.front());
        p->queue.pop_front();
        p->queued.store(p->queue.size(), std::memory_order_relaxed);
      }
      running_flag = task.cancel.get();
      running_progress = &task.progress;
      const auto start = Clock::now();
      task.run();
      small = Clock::now() - start < std::chrono::microseconds(20);
      running_flag = nullptr;
      running_progress = nullptr;
    }
  }).detach();
}

Engine& Engine::get() {
  static Engine* engine = new Engine;  // leaked on purpose: the thread outlives static destruction
  return *engine;
}

void Engine::post(std::function<void()> run, std::shared_ptr<CancelFlag> cancel, ProgressSink progress) {
  {
    std::lock_guard lock(p_->mutex);
    p_->queue.push_back({std::move(run), std::move(cancel), std::move(progress)});
    p_->queued.store(p_->queue.size(), std::memory_order_relaxed);
  }
  p_->wake.notify_one();
}

void Engine::run_sync(const std::function<void()>& f) {
  if (on_engine) return f();
  sem_t done;
  sem_init(&done, 0, 0);
  std::exception_ptr error;
  post([&] {
    try {
      f();
    } catch (...) {
      error = std::current_exception();
    }
    sem_post(&done);  // after it only the address counts: the waiter, whose stack it is on, may go on at once
  });
  bool over = false;
  watch(std::chrono::microseconds(spare_core() ? 200 : 3), [&] { return over = sem_trywait(&done) == 0; });
  while (!over) over = sem_wait(&done) == 0;  // again after a signal
  sem_destroy(&done);
  if (error) std::rethrow_exception(error);
}

}  // namespace deem
