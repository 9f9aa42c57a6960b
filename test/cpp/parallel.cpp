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
    const int64_t before = teams_of_openmp(), libraries = teams_of_libraries();
    openmp_takes_over();
    EXPECT_EQ(teams_of_openmp(), before + 1);
    EXPECT_EQ(teams_of_libraries(), libraries + 1);
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
  // Not after a library has started threads, but again when it has not for a while.
  auto was_helped = [](bool library) {
    bool asked = false;
    Engine::get().run_sync([&, asking = std::this_thread::get_id()] {
      if (library) openmp_takes_over();
      Parts p;
      asked = run_with_lent_thread(Parts::body, &p) && p.by[1] == asking;
    });
    return asked;
  };
  was_helped(true);
  for (int i = 0; i < 8; i++) EXPECT(!was_helped(false));
  for (helped = false; !helped && std::chrono::steady_clock::now() < end;) helped = was_helped(false);
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

TEST("shares: every item is taken once, a thread's own before those of others") {
  for (const auto& [n, threads] : {std::pair<int64_t, int64_t>{0, 2}, {1, 3}, {7, 2}, {10, 3}, {3, 40}, {1000, 40}}) {
    Shares shares(n, threads);
    std::vector<int> taken(size_t(n), 0);
    for (int64_t i; (i = shares.take(1)) >= 0;) {
      if (n == 10 && taken[3] + taken[4] + taken[5] < 3) EXPECT(i >= 3 && i < 6);
      taken[size_t(i)]++;
    }
    EXPECT_EQ(shares.take(0), -1);
    for (int count : taken) EXPECT_EQ(count, 1);
  }
  Shares shares(100000, 4);
  std::vector<int> taken(100000, 0);
  std::vector<std::thread> threads;
  for (int me = 0; me < 4; me++)
    threads.emplace_back([&, me] {
      for (int64_t i; (i = shares.take(me)) >= 0;) taken[size_t(i)]++;
    });
  for (auto& t : threads) t.join();
  for (int count : taken) EXPECT_EQ(count, 1);
}

}  // namespace deem::test
