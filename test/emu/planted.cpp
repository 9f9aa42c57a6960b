#include "planted.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace deem::test {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kPlain = false;
constexpr unsigned kReported = kAddress;
constexpr const char* kReports[] = {"ERROR: AddressSanitizer", "runtime error: "};
#elif defined(__SANITIZE_THREAD__)
constexpr bool kPlain = false;
constexpr unsigned kReported = kRace;
constexpr const char* kReports[] = {"WARNING: ThreadSanitizer: data race"};
#else
constexpr bool kPlain = true;
constexpr unsigned kReported = 0;
constexpr const char* kReports[] = {"Segmentation fault"};
#endif

// Under a few seeds; true where all results were right and nothing was thrown.
static bool passes(const Plant& plant, bool bug, std::string& said) {
  bool right = true;
  const uint32_t before = emu::seed();
  for (uint32_t seed = 0; seed < (kPlain ? 20u : 3u) && right; seed++) {
    emu::set_seed(seed);
    try {
      right = plant.run(bug);
      if (!right) said = str("wrong with seed ", seed);
    } catch (const std::exception& e) {
      right = false;
      said = e.what();
    }
    emu::clear_fault();
  }
  emu::set_seed(before);
  return right;
}

// The same program with its bug, in a process of its own: what it printed, and whether it was killed.
static std::string in_child(const Plant& plant, bool guard) {
  char self[4096] = {};
  if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) throw Failure{"no /proc/self/exe"};
  const std::string command =
      str("DEEM_EMU_PLANTED=1 ", guard ? "DEEM_EMU_GUARD=1 " : "", "'", self, "' '", plant.name, "' 2>&1");
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) throw Failure{"no child process"};
  std::string out;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  const int status = pclose(pipe);
  if (WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) > 128)) out += "Segmentation fault";
  return out;
}

static void expect_report(const Plant& plant, bool guard) {
  const std::string out = in_child(plant, guard);
  for (const char* report : kReports)
    if (out.find(report) != std::string::npos) return;
  throw Failure{str("nothing was reported, only: ", out)};
}

void check_planted(const Plant& plant) {
  std::string said;
  if (std::getenv("DEEM_EMU_PLANTED")) {
    passes(plant, true, said);
    return;
  }
  if (!passes(plant, false, said)) throw Failure{str("the clean program: ", said)};
  if (plant.shows & kError) {
    if (passes(plant, true, said)) throw Failure{"no error"};
    if (said.starts_with("wrong")) throw Failure{str("no error, but ", said)};
  } else if (kPlain && plant.shows & kWrong) {
    if (passes(plant, true, said)) throw Failure{"right under every seed"};
  }
  if (plant.shows & kReported) expect_report(plant, false);
  if (kPlain && plant.shows & kCrash) expect_report(plant, true);
}

}  // namespace deem::test
