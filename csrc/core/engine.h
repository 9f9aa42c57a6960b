// The engine thread: one per process, shared by every JavaScript environment, since one team of threads is all the cores
// there are. Tasks run in the order they were queued. Cancellation is a flag that operations poll.
#pragma once
#include <atomic>
#include <functional>
#include <memory>

#include "core/error.h"

namespace deem {

struct CancelFlag {
  std::atomic<bool> raised{false};
};

// Throws Aborted when the flag of the running task is up. Cheap: called by every operation.
void poll_cancel();

// Tells whoever waits for the running task how far it is; does nothing where nobody asked.
void report_progress(int64_t done, int64_t total);
using ProgressSink = std::function<void(int64_t done, int64_t total)>;

class Engine {
 public:
  static Engine& get();

  // Queues a task. `run` must not throw; it runs with `cancel` as the flag that poll_cancel() reads and `progress` behind
  // report_progress(). `done` tells who waits for it, when nothing of it is under way any more. All but run may be null.
  void post(std::function<void()> run, std::shared_ptr<CancelFlag> cancel = nullptr, ProgressSink progress = nullptr,
            std::function<void()> done = nullptr);

  // Runs f on the engine thread and waits for it; rethrows what it throws. On the engine thread it just calls f.
  void run_sync(const std::function<void()>& f);

  // The same for what takes no longer than asking a thread to do it: where no task is queued or under way, f runs on the calling thread. f must not queue any.
  void run_brief(const std::function<void()>& f);

 private:
  Engine();
  struct Impl;
  Impl* p_;
};

}  // namespace deem
