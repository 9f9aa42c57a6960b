#include "core/engine.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

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

struct Engine::Impl {
  struct Task {
    std::function<void()> run;
    std::shared_ptr<CancelFlag> cancel;
    ProgressSink progress;
  };
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Task> queue;
};

Engine::Engine() : p_(new Impl) {
  std::thread([p = p_] {
    on_engine = true;
    for (;;) {
      Impl::Task task;
      {
        std::unique_lock lock(p->mutex);
        p->wake.wait(lock, [&] { return !p->queue.empty(); });
        task = std::move(p->queue.front());
        p->queue.pop_front();
      }
      running_flag = task.cancel.get();
      running_progress = &task.progress;
      task.run();
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
  }
  p_->wake.notify_one();
}

void Engine::run_sync(const std::function<void()>& f) {
  if (on_engine) return f();
  std::mutex mutex;
  std::condition_variable wake;
  bool done = false;
  std::exception_ptr error;
  post([&] {
    try {
      f();
    } catch (...) {
      error = std::current_exception();
    }
    std::lock_guard lock(mutex);
    done = true;
    wake.notify_one();  // under the lock: the waiter's stack owns the condition variable
  });
  std::unique_lock lock(mutex);
  wake.wait(lock, [&] { return done; });
  if (error) std::rethrow_exception(error);
}

}  // namespace deem
