#include "cpu/parallel.h"

#include <chrono>
#include <thread>
#include <vector>

#include "core/engine.h"
#include "test.h"

namespace deem::test {
namespace {

struct Threads {
  int before = num_threads();
  explicit Threads(int n) { set_num_threads(n); }
  ~Threads() { set_num_threads(before); }
};

// What each of the two parts of a team was run by.
struct Parts {
  std::thread::id by[2];
  int calls = 0;
  static void body(void* context, int64_t me, int64_t of) {
    Parts& p = *static_cast<Parts*>(context);
    EXPECT(of == 2 && me >= 0 && me < 2);
    p.by[me] = std::this_thread::get_id();
    std::atomic_ref<int>(p.calls)++;
  }
};

constexpr std::chrono::seconds kPatience{60};

}  // namespace

TEST("teams: a lent thread takes its part, and none is left out when it comes and goes") {
  Threads two(2);
  Parts nobody;
  EXPECT(!run_with_lent_thread(Parts::body, &nobody));
  EXPECT_EQ(nobody.calls, 0);

  std::atomic<bool> over{false};
  std::thread lender([&] {
    // Leaves after some looks, with or without work.
    for (int turn = 0; !over; turn++) {
      LentThread lent(true);
      int looks = 0;
      lent.work_until([&] { return over || looks++ > turn % 50; });
    }
  });
  int shared = 0, alone = 0;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while ((shared < 1000 || alone < 10) && std::chrono::steady_clock::now() < end) {
    Parts p;
    if (!run_with_lent_thread(Parts::body, &p)) continue;
    EXPECT_EQ(p.calls, 2);
    EXPECT(p.by[0] == std::this_thread::get_id());
    if (p.by[1] == lender.get_id()) shared++;
    else alone++;
  }
  over = true;
  lender.join();
  EXPECT(shared >= 1000 && alone >= 10);
}

TEST("teams: one thread at a time is lent, for teams of two, until OpenMP takes over") {
  Parts p;
  {
    Threads three(3);
    LentThread lent(true);
    EXPECT(!run_with_lent_thread(Parts::body, &p));
  }
  Threads two(2);
  {
    LentThread unwanted(false), first(true), second(true);
    EXPECT(run_with_lent_thread(Parts::body, &p));  // and takes back what the first, not at work yet, did not take
    EXPECT(p.calls == 2 && p.by[1] == std::this_thread::get_id());
    second.work_until([]() -> bool { throw ValueError("it is not lent"); });
    const int64_t before = teams_of_openmp();
    openmp_takes_over();
    EXPECT_EQ(teams_of_openmp(), before + 1);
    EXPECT(!run_with_lent_thread(Parts::body, &p));
    first.work_until([] { return false; });
  }
  EXPECT(!run_with_lent_thread(Parts::body, &p));
  LentThread again(true);
  EXPECT(run_with_lent_thread(Parts::body, &p));
}

TEST("teams: a thread that asks for one operation after the other takes part in them") {
  Threads two(2);
  bool helped = false;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!helped && std::chrono::steady_clock::now() < end)
    Engine::get().run_sync([&, asking = std::this_thread::get_id()] {
      Parts p;
      helped = run_with_lent_thread(Parts::body, &p) && p.by[1] == asking;
    });
  EXPECT(helped);
  // A team in a team is the thread itself.
  std::vector<int> calls(100);
  Engine::get().run_sync([&] {
    auto body = [&](int64_t me, int64_t) {
      EXPECT(in_team());
      if (me == 0)
        parallel_for(100, 1 << 20, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i++) calls[size_t(i)]++;
        });
    };
    on_team(1, body);
    EXPECT(!in_team());
  });
  for (int n : calls) EXPECT_EQ(n, 1);
}

}  // namespace deem::test
