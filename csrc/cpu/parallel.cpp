#include "cpu/parallel.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include "core/error.h"

namespace deem {
namespace {

int read_int(const std::string& path, int fallback) {
  std::ifstream in(path);
  int v;
  return in >> v ? v : fallback;
}

// What the process may use: the masks of all its threads, since OMP_PROC_BIND ties the one that loads libgomp to one core.
cpu_set_t process_mask() {
  cpu_set_t all;
  CPU_ZERO(&all);
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", error)) {
    cpu_set_t mask;
    if (sched_getaffinity(std::atoi(task.path().filename().c_str()), sizeof mask, &mask) == 0)
      CPU_OR(&all, &all, &mask);
  }
  if (CPU_COUNT(&all) == 0) sched_getaffinity(0, sizeof all, &all);
  return all;
}

// n, or what the cgroup's CPU quota leaves of it.
int within_quota(int n) {
  std::ifstream quota("/sys/fs/cgroup/cpu.max");
  std::string max;
  double period;
  if (quota >> max >> period && max != "max" && period > 0)
    n = std::clamp(int(std::atof(max.c_str()) / period + 0.5), 1, n);
  return n;
}

// Physical cores in the affinity mask (hyper-threads counted once), cut to the quota.
int usable_cores() {
  cpu_set_t mask = process_mask();
  if (CPU_COUNT(&mask) == 0) return std::max(1u, std::thread::hardware_concurrency());
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::string dir = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    cores.insert({read_int(dir + "physical_package_id", 0), read_int(dir + "core_id", cpu)});
  }
  return within_quota(std::max<int>(1, int(cores.size())));
}

std::atomic<int> threads{0};

}  // namespace

void unbind_this_thread() {
  cpu_set_t all = process_mask();
  if (CPU_COUNT(&all) > 0) sched_setaffinity(0, sizeof all, &all);
}

int num_threads() {
  int n = threads.load(std::memory_order_relaxed);
  if (n == 0) {
    const char* asked = std::getenv("DEEM_THREADS");
    n = asked ? std::clamp(std::atoi(asked), 1, 256) : usable_cores();
    threads.store(n, std::memory_order_relaxed);
  }
  return n;
}

bool spare_core() {
  static const int processors = [] {
    const cpu_set_t mask = process_mask();
    return within_quota(std::max(1, CPU_COUNT(&mask)));
  }();
  return processors > num_threads();
}

void set_num_threads(int n) {
  check<ValueError>(n >= 1 && n <= 256, "threads must be 1..256 but got ", n);
  threads.store(n, std::memory_order_relaxed);
}

// ---- teams ------------------------------------------------------------------------------------------------------------

// Most teams are OpenMP's, and belong to the engine's thread: libgomp's threads no longer look for work before they sleep where a process has
// more of them than cores. But where operations are asked for one by one, the thread that asks has nothing to do meanwhile, and to
// wake it when it sleeps, on a core where a thread of OpenMP's looks for work, takes longer than many operations. So it waits by taking
// part: a team of two is then the engine's thread and the one that waits for it. With more threads than two, OpenMP's would have
// to be started and ended as teams change their size.
namespace {

thread_local bool inside = false;
thread_local int64_t openmp_teams = 0, library_teams = 0;

struct Inside {
  bool before = inside;
  Inside() { inside = true; }
  ~Inside() { inside = before; }
};

void run_body(TeamBody body, void* context, int64_t me, int64_t of) noexcept {
  Inside scope;
  body(context, me, of);
}

struct Job {
  TeamBody body;
  void* context;
  bool done = false;
};

// What the lent thread and the engine's tell each other: one of these, or a job that waits to be taken. Only the engine's thread
// offers jobs, and it takes back what nobody took.
Job *const kNobody = nullptr, *const kWaiting = reinterpret_cast<Job*>(1), *const kWorking = reinterpret_cast<Job*>(2),
           *const kDismissed = reinterpret_cast<Job*>(3);
std::atomic<Job*> lent{kNobody};

bool change(Job* from, Job* to) { return lent.compare_exchange_strong(from, to); }

}  // namespace

void give_way() { sched_yield(); }

bool in_team() { return inside; }

bool run_with_lent_thread(TeamBody body, void* context) {
  Job job{body, context};
  if (!change(kWaiting, &job)) return false;
  run_body(body, context, 0, 2);
  if (!change(&job, kWaiting)) wait_until([] { return lent.load(std::memory_order_acquire) != kWorking; });
  if (!job.done) run_body(body, context, 1, 2);
  return true;
}

void run_team(int64_t threads, TeamBody body, void* context) {
  if (threads <= 1 || inside) return run_body(body, context, 0, 1);
  if (threads == 2 && run_with_lent_thread(body, context)) return;
  openmp_teams++;
#pragma omp parallel num_threads(int(threads))
  run_body(body, context, omp_get_thread_num(), omp_get_num_threads());
}

LentThread::LentThread(bool wanted) : lent_(wanted && num_threads() == 2 && change(kNobody, kWaiting)) {}

LentThread::~LentThread() {
  if (lent_) lent.store(kNobody, std::memory_order_release);  // a job that came meanwhile goes back to who offered it
}

void LentThread::work_until(const std::function<bool()>& over) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::microseconds kLongest{1000}, kAlone{20};
  if (!lent_) return;
  auto last = Clock::now();
  for (auto now = last; !over() && now - last < kLongest; now = Clock::now()) {
    if (now - last > kAlone) give_way();  // the engine's thread may be waiting for this very core
    for (int i = 0; i < 16 && lent.load(std::memory_order_relaxed) == kWaiting; i++) __builtin_ia32_pause();
    Job* job = lent.load(std::memory_order_acquire);
    if (job == kDismissed) break;
    if (job == kWaiting || !change(job, kWorking)) continue;
    run_body(job->body, job->context, 1, 2);
    job->done = true;
    lent.store(kWaiting, std::memory_order_release);
    last = Clock::now();
  }
  lent.store(kNobody, std::memory_order_release);
  lent_ = false;
}

void openmp_takes_over() {
  change(kWaiting, kDismissed);
  openmp_teams++, library_teams++;
}

int64_t teams_of_openmp() { return openmp_teams; }
int64_t teams_of_libraries() { return library_teams; }

}  // namespace deem
