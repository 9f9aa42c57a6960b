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
    std::function<void()> done;
  };
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Task> queue;
  std::atomic<int> awaited{0};         // tasks in a row that somebody waited for
  std::atomic<int64_t> unfinished{0};  // tasks queued or under way; grows under the lock

  void add(Task task) {
    {
      std::lock_guard lock(mutex);
      queue.push_back(std::move(task));
      unfinished++;
    }
    wake.notify_one();
  }
};

Engine::Engine() : p_(new Impl) {
  std::thread([p = p_] {
    on_engine = true;
    bool small = false, alone = false;
    for (;;) {
      Impl::Task task;
      // Not after large tasks of OpenMP's threads where threads are as many as cores: those look for work too then, and whoever is to
      // post some needs a core.
      if (small || alone || spare_core())
        watch(std::chrono::microseconds(50), [&] { return p->unfinished.load(std::memory_order_relaxed) > 0; });
      {
        std::unique_lock lock(p->mutex);
        p->wake.wait(lock, [&] { return !p->queue.empty(); });
        task = std::move(p->queue.front());
        p->queue.pop_front();
      }
      running_flag = task.cancel.get();
      running_progress = &task.progress;
      const auto start = Clock::now();
      const int64_t teams = teams_of_openmp(), libraries = teams_of_libraries();
      task.run();
      alone = teams_of_openmp() == teams;
      // A library's threads have a core then that the asking thread would take part on: it wakes beside the engine's, and both get half of one.
      if (teams_of_libraries() != libraries) p->awaited = 0;
      small = Clock::now() - start < std::chrono::microseconds(20);
      running_flag = nullptr;
      running_progress = nullptr;
      const auto done = std::move(task.done);
      task = {};
      p->unfinished.fetch_sub(1, std::memory_order_release);
      if (done) done();
    }
  }).detach();
}

Engine& Engine::get() {
  static Engine* engine = new Engine;  // leaked on purpose: the thread outlives static destruction
  return *engine;
}

void Engine::post(std::function<void()> run, std::shared_ptr<CancelFlag> cancel, ProgressSink progress,
                  std::function<void()> done) {
  p_->awaited = 0;
  p_->add({std::move(run), std::move(cancel), std::move(progress), std::move(done)});
}

void Engine::run_sync(const std::function<void()>& f) {
  if (on_engine) return f();
  // While tasks alternate with others, OpenMP's threads stay awake and do better.
  constexpr int kInARow = 8;
  const bool in_a_row = p_->awaited.load() >= kInARow;
  if (!in_a_row) p_->awaited++;
  LentThread lent(in_a_row);  // before the task can begin
  sem_t done;
  sem_init(&done, 0, 0);
  std::exception_ptr error;
  auto run = [&] {
    try {
      f();
    } catch (...) {
      error = std::current_exception();
    }
  };
  // After sem_post only the address counts: the waiter, whose stack it is on, may go on at once.
  p_->add({run, nullptr, nullptr, [&done] { sem_post(&done); }});
  bool over = false;
  auto look = [&] { return over = over || sem_trywait(&done) == 0; };
  lent.work_until(look);
  watch(std::chrono::microseconds(spare_core() ? 200 : 3), look);
  while (!over) over = sem_wait(&done) == 0;  // again after a signal
  sem_destroy(&done);
  if (error) std::rethrow_exception(error);
}

void Engine::run_brief(const std::function<void()>& f) {
  if (on_engine) return f();
  {
    std::lock_guard lock(p_->mutex);  // nothing begins meanwhile
    if (p_->unfinished.load(std::memory_order_acquire) == 0) {
      struct Here {
        Here() { on_engine = true; }
        ~Here() { on_engine = false; }
      } here;
      return f();
    }
  }
  run_sync(f);
}

}  // namespace deem
