#include "core/engine.h"

#include <chrono>
#include <thread>
#include <vector>

#include "test.h"

namespace deem::test {

TEST("engine: tasks run in the order they were posted, on one thread") {
  std::vector<int> order;
  std::vector<std::thread::id> ids;
  for (int i = 0; i < 1000; i++)
    Engine::get().post([&, i] {
      order.push_back(i);
      ids.push_back(std::this_thread::get_id());
    });
  Engine::get().run_sync([] {});
  EXPECT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; i++) EXPECT(order[size_t(i)] == i && ids[size_t(i)] == ids[0]);
  EXPECT(ids[0] != std::this_thread::get_id());
}

TEST("engine: run_sync returns after the work, rethrows, and may be nested") {
  int value = 0;
  Engine::get().run_sync([&] { value = 1; });
  EXPECT_EQ(value, 1);
  expect_error<ShapeError>([] { Engine::get().run_sync([] { throw ShapeError("from there"); }); }, "from there");
  Engine::get().run_sync([&] { Engine::get().run_sync([&] { value = 2; }); });
  EXPECT_EQ(value, 2);
  expect_error<IoError>([] { Engine::get().run_sync([] { Engine::get().run_sync([] { throw IoError("deep"); }); }); },
                        "deep");
}

TEST("engine: a raised flag stops the task that polls it, and only that one") {
  auto flag = std::make_shared<CancelFlag>();
  std::atomic<bool> started{false}, aborted{false}, next_ran{false};
  Engine::get().post(
      [&] {
        started = true;
        try {
          for (;;) poll_cancel();
        } catch (const Aborted&) {
          aborted = true;
        }
      },
      flag);
  Engine::get().post([&] {
    poll_cancel();
    next_ran = true;
  });
  while (!started) std::this_thread::yield();
  flag->raised = true;
  Engine::get().run_sync([] { poll_cancel(); });
  EXPECT(aborted && next_ran);
  poll_cancel();  // not a task
}

TEST("engine: a flag raised before its turn is seen at once") {
  auto flag = std::make_shared<CancelFlag>();
  flag->raised = true;
  bool aborted = false;
  Engine::get().post(
      [&] {
        try {
          poll_cancel();
        } catch (const Aborted&) {
          aborted = true;
        }
      },
      flag);
  Engine::get().run_sync([] {});
  EXPECT(aborted);
}

TEST("engine: many threads post") {
  int sum = 0;  // touched by the engine thread only
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back([&] {
      for (int i = 0; i < 500; i++) {
        if (i % 10 == 0) Engine::get().run_sync([&] { sum++; });
        else Engine::get().post([&] { sum++; });
      }
    });
  for (std::thread& t : threads) t.join();
  Engine::get().run_sync([&] { EXPECT_EQ(sum, 2000); });
}

TEST("engine: what is brief runs on the calling thread, but not before tasks that were posted, nor beside one") {
  const std::thread::id here = std::this_thread::get_id();
  Engine::get().run_sync([] {});
  std::thread::id by;
  Engine::get().run_brief([&] { by = std::this_thread::get_id(); });
  EXPECT(by == here);
  Engine::get().run_brief([&] { Engine::get().run_sync([&] { by = {}; }); });  // nested: runs at once
  EXPECT(by == std::thread::id{});

  std::atomic<bool> started{false}, go{false};
  std::vector<int> order;
  Engine::get().post([&] {
    started = true;
    while (!go) std::this_thread::yield();
    order.push_back(1);
  });
  Engine::get().post([&] { order.push_back(2); });
  while (!started) std::this_thread::yield();
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    go = true;
  });
  Engine::get().run_brief([&] { order.push_back(3); });
  later.join();
  EXPECT((order == std::vector{1, 2, 3}));
  expect_error<ShapeError>([] { Engine::get().run_brief([] { throw ShapeError("from here"); }); }, "from here");
}

TEST("engine: who waits for a task is told when nothing of it is under way") {
  auto held = std::make_shared<int>(1);
  std::atomic<long> uses{0};
  std::atomic<bool> brief{false};
  Engine::get().post([held] {}, nullptr, nullptr, [&, here = &held] { uses = here->use_count(); });
  while (uses == 0) std::this_thread::yield();
  EXPECT_EQ(uses.load(), 1);
  Engine::get().run_brief([&] { brief = true; });
  EXPECT(brief);
}

TEST("engine: what a task captured is freed by the time the next one runs") {
  auto held = std::make_shared<int>(1);
  Engine::get().post([held] {});
  long uses = 0;
  Engine::get().run_sync([&] { uses = held.use_count(); });
  EXPECT_EQ(uses, 1);
}

}  // namespace deem::test
