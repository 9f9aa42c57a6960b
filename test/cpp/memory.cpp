#include "core/memory.h"

#include <cstring>
#include <thread>
#include <vector>

#include "core/tensor.h"
#include "test.h"

namespace deem::test {

TEST("allocator: blocks are aligned, also empty ones, and counted") {
  empty_cache();
  MemoryStats before = memory_stats();
  for (size_t bytes : {0, 1, 63, 64, 65, 1000, 4096, 100000}) {
    void* block = allocate(bytes);
    EXPECT(block != nullptr && reinterpret_cast<uintptr_t>(block) % 64 == 0);
    std::memset(block, 0xab, bytes);
    MemoryStats now = memory_stats();
    EXPECT(now.current - before.current >= bytes);
    EXPECT(now.current - before.current <= bytes + bytes / 3 + 64);
    EXPECT(now.reserved >= now.current && now.peak >= now.current);
    release(block, bytes);
    EXPECT_EQ(memory_stats().current, before.current);
  }
  EXPECT(memory_stats().reserved > before.reserved);
  empty_cache();
  EXPECT_EQ(memory_stats().reserved, before.reserved);
}

TEST("allocator: a freed block is used again for a size of its class") {
  empty_cache();
  void* a = allocate(10000);
  release(a, 10000);
  size_t taken = memory_stats().allocations;
  void* b = allocate(9999);
  EXPECT(a == b);
  EXPECT_EQ(memory_stats().allocations, taken);
  void* c = allocate(10000);
  EXPECT(c != b);
  EXPECT_EQ(memory_stats().allocations, taken + 1);
  release(b, 9999);
  release(c, 10000);
}

TEST("allocator: scratch memory is lent of any kept block, but below a limit, and counts as what was asked") {
  empty_cache();
  constexpr size_t kBlock = size_t(64) << 20, kScratch = size_t(2) << 20;
  void* block = allocate(kBlock);
  release(block, kBlock);
  const MemoryStats kept = memory_stats();
  void* scratch = allocate_scratch(kScratch);
  EXPECT(scratch == block);
  EXPECT_EQ(memory_stats().allocations, kept.allocations);
  EXPECT_EQ(memory_stats().current, kept.current + kScratch);
  void* other = allocate_scratch(kScratch);
  EXPECT(other != block);
  release(other, kScratch);
  release(scratch, kScratch);
  EXPECT_EQ(memory_stats().current, kept.current);
  EXPECT(allocate(kBlock) == block);  // it went back as what it is
  release(block, kBlock);
  empty_cache();
  block = allocate(kBlock);
  release(block, kBlock);
  set_memory_limit(memory_stats().reserved + kScratch);
  scratch = allocate_scratch(kScratch);
  EXPECT(scratch != block);
  release(scratch, kScratch);
  set_memory_limit(0);
  empty_cache();
  EXPECT_EQ(memory_stats().reserved, memory_stats().current);
}

TEST("allocator: the numbers of a block that grew can all be written") {
  empty_cache();
  size_t bytes = size_t(1) << 20;
  release(allocate(bytes), bytes);
  for (int i = 0; i < 12; i++) {
    bytes += bytes / 2 + 1000;
    void* block = allocate(bytes);
    EXPECT(reinterpret_cast<uintptr_t>(block) % 64 == 0);
    std::memset(block, i, bytes);
    EXPECT(static_cast<char*>(block)[0] == i && static_cast<char*>(block)[bytes - 1] == i);
    release(block, bytes);
  }
  // One block that grew, not one of each size.
  EXPECT(memory_stats().reserved - memory_stats().current < 2 * bytes);
  empty_cache();
  EXPECT_EQ(memory_stats().reserved, memory_stats().current);
}

TEST("allocator: the peak is the highest since its reset") {
  reset_peak_memory();
  size_t base = memory_stats().current;
  EXPECT_EQ(memory_stats().peak, base);
  release(allocate(1 << 20), 1 << 20);
  EXPECT_EQ(memory_stats().current, base);
  EXPECT(memory_stats().peak >= base + (1 << 20));
  reset_peak_memory();
  EXPECT_EQ(memory_stats().peak, base);
}

TEST("allocator: the limit throws, keeps live blocks, and counts cached ones out before it does") {
  empty_cache();
  size_t base = memory_stats().reserved;
  void* a = allocate(1 << 20);
  set_memory_limit(base + (3 << 20));
  expect_error<OutOfMemory>([] { allocate(4 << 20); }, "exceed the limit");
  EXPECT_EQ(memory_stats().current - base, size_t(1 << 20));
  void* b = allocate(1 << 20);
  release(b, 1 << 20);
  void* c = allocate(2 << 20);  // fits only when the cached block of b goes
  expect_error<OutOfMemory>([] { allocate(1 << 20); }, "exceed the limit");
  release(c, 2 << 20);
  set_memory_limit(1);  // below what is live: nothing new, everything old
  std::memset(a, 1, 1 << 20);
  expect_error<OutOfMemory>([] { allocate(64); }, "exceed the limit");
  expect_error<OutOfMemory>([] { Tensor::zeros({2}); }, "exceed the limit");
  set_memory_limit(0);
  release(a, 1 << 20);
  release(allocate(4 << 20), 4 << 20);
  empty_cache();
  EXPECT_EQ(memory_stats().reserved, base);
}

TEST("allocator: impossible sizes are errors") {
  expect_error<OutOfMemory>([] { allocate(size_t(1) << 48); }, "cannot allocate");
  expect_error<OutOfMemory>([] { allocate(~size_t(0)); }, "cannot allocate");
  expect_error<OutOfMemory>([] { allocate(size_t(1) << 47); }, "the system has no");
  expect_error<ShapeError>([] { Tensor::empty({int64_t(1) << 40, 1 << 10}); }, "too many elements");
}

TEST("allocator: threads share it") {
  empty_cache();
  MemoryStats before = memory_stats();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back([t] {
      std::vector<std::pair<uint8_t*, size_t>> live;
      for (int i = 0; i < 2000; i++) {
        size_t bytes = size_t(64 * (1 + (i * 7 + t) % 50));
        auto* block = static_cast<uint8_t*>(allocate(bytes));
        std::memset(block, t, bytes);
        live.push_back({block, bytes});
        if (live.size() > 10) {
          auto [old, n] = live.front();
          live.erase(live.begin());
          if (old[0] != t || old[n - 1] != t) std::abort();
          release(old, n);
        }
      }
      for (auto [block, n] : live) release(block, n);
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(memory_stats().current, before.current);
  empty_cache();
  EXPECT_EQ(memory_stats().reserved, before.reserved);
}

}  // namespace deem::test
