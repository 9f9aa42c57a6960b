#include "cpu/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
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

}  // namespace deem
