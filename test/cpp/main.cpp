#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "test.h"

namespace deem::test {

struct Entry {
  const char* name;
  void (*run)();
};

static std::vector<Entry>& entries() {
  static std::vector<Entry> list;
  return list;
}

Case::Case(const char* name, void (*run)()) { entries().push_back({name, run}); }

static int run_all(const char* part) {
  int passed = 0, failed = 0;
  for (const Entry& e : entries()) {
    if (part && !std::strstr(e.name, part)) continue;
    auto start = std::chrono::steady_clock::now();
    std::string problem;
    try {
      e.run();
    } catch (const Failure& f) {
      problem = f.message;
    } catch (const std::exception& x) {
      problem = str("threw ", x.what());
    }
    double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    (problem.empty() ? passed : failed)++;
    std::printf("%s %s (%.0f ms)\n", problem.empty() ? "ok  " : "FAIL", e.name, ms);
    if (!problem.empty()) std::printf("     %s\n", problem.c_str());
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed;
}

}  // namespace deem::test

#if defined(__SANITIZE_ADDRESS__)
// Impossible allocations must reach the engine's own error, as they do without the sanitizer. Visible, or the shared runtime
// does not find it.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "allocator_may_return_null=1:detect_stack_use_after_return=1";
}
#elif defined(__SANITIZE_THREAD__)
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "allocator_may_return_null=1";
}
#endif

int main(int argc, char** argv) { return deem::test::run_all(argc > 1 ? argv[1] : nullptr); }
