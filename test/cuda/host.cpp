// The plugin's host side through the table that the engine sees: copies in order, blocks in order, limits, graphs.
#include <cstring>
#include <numeric>

#include "core/plugin.h"
#include "cuda/emu/emu.h"
#include "ops/elementwise.h"
#include "parity.h"

extern "C" const deem::Plugin* deem_cuda_plugin();

namespace deem::test {
namespace {

const DeviceApi& api() { return *deem_cuda_plugin()->api; }

// A block that is released at the end.
struct Block {
  size_t bytes;
  void* data;
  explicit Block(size_t bytes) : bytes(bytes), data(api().allocate(bytes)) {}
  ~Block() { api().release(data, bytes); }
  Block(const Block&) = delete;
};

std::vector<float> ramp(size_t n, float first) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), first);
  return v;
}

std::vector<float> fetch(const void* from, size_t n) {
  std::vector<float> v(n);
  api().download(v.data(), from, n * sizeof(float));
  return v;
}

// y = x + s, queued
void add(const void* x, void* y, size_t n, float s) {
  register_cuda_kernels();
  unary_kernel(Device::cuda, {Unary::add_scalar, x, y, int64_t(n), s, 0, DType::f32});
}

TEST("cuda host: the plugin says what it is") {
  const Plugin* plugin = deem_cuda_plugin();
  EXPECT_EQ(plugin->abi, kPluginAbi);
  EXPECT(!plugin->needs_driver);
  EXPECT(plugin->kernel_count > 0);
  DeviceInfo info = api().info(-1);
  EXPECT_EQ(info.index, 0);
  EXPECT(info.count >= 1 && info.major >= 8 && info.total_bytes >= info.free_bytes && !info.name.empty());
  api().select(0);
  expect_error<DeviceError>([&] { api().info(info.count); }, "no device 'cuda:");
  expect_error<DeviceError>([&] { api().select(info.count); }, "no device 'cuda:");
}

TEST("cuda host: uploads, kernels, copies and downloads keep their order in every schedule") {
  for (uint32_t seed : seeds()) {
    emu::set_seed(seed);
    for (size_t n : {1u, 1000u, 100'000u, 1'500'000u}) {
      std::vector<float> host = ramp(n, 1);
      Block a(n * 4), b(n * 4), c(n * 4);
      api().upload(a.data, host.data(), n * 4);
      std::fill(host.begin(), host.end(), -1.0f);  // it was read before upload() returned
      if (n > 1000) {                              // kernels on so much take long here
        api().copy(b.data, a.data, n * 4);
        api().fill(a.data, 0, n * 4);
        EXPECT(fetch(b.data, n) == ramp(n, 1));
        EXPECT(fetch(a.data, n) == std::vector<float>(n, 0.0f));
        continue;
      }
      add(a.data, b.data, n, 1);
      api().upload(a.data, ramp(n, 5).data(), n * 4);  // after the kernel has read
      add(a.data, c.data, n, 1);
      api().copy(a.data, b.data, n * 4);
      EXPECT(fetch(b.data, n) == ramp(n, 2));
      EXPECT(fetch(c.data, n) == ramp(n, 6));
      EXPECT(fetch(a.data, n) == ramp(n, 2));
    }
  }
}

TEST("cuda host: a block is used again while its last work is queued, large uploads too") {
  constexpr size_t n = 100'000;  // above what goes by the copy stream
  for (uint32_t seed : seeds()) {
    emu::set_seed(seed);
    Block kept(n * 4);
    for (int round = 0; round < 6; round++) {
      void* before;
      {
        Block a(n * 4);
        before = a.data;
        api().upload(a.data, ramp(n, float(round)).data(), n * 4);
        api().copy(kept.data, a.data, n * 4);
      }
      Block again(n * 4);
      if (!std::getenv("DEEM_CUDA_EXACT_BLOCKS")) EXPECT_EQ(again.data, before);
      api().upload(again.data, ramp(n, -1).data(), n * 4);
      EXPECT(fetch(kept.data, n) == ramp(n, float(round)));
      EXPECT(fetch(again.data, n) == ramp(n, -1));
    }
  }
}

TEST("cuda host: memory is counted, held below a limit and given back") {
  if (std::getenv("DEEM_CUDA_EXACT_BLOCKS")) return;  // nothing is kept
  api().empty_cache();
  api().reset_peak_memory();
  MemoryStats start = api().memory_stats();
  EXPECT_EQ(start.peak, start.current);
  constexpr size_t MiB = 1 << 20;
  {
    Block a(MiB), b(1);
    MemoryStats now = api().memory_stats();
    EXPECT_EQ(now.current - start.current, MiB + 512);
    EXPECT_EQ(now.allocations - start.allocations, 2u);
  }
  MemoryStats after = api().memory_stats();
  EXPECT_EQ(after.current, start.current);
  EXPECT_EQ(after.peak - start.current, MiB + 512);
  EXPECT_EQ(after.reserved - start.reserved, MiB + 512);
  api().set_memory_limit(start.current + 2 * MiB);
  {
    Block a(MiB);
    expect_error<OutOfMemory>([] { Block b(2 * MiB); },
                              "allocating 2097152 bytes on the GPU would exceed the limit of");
    Block c(MiB);  // what is cached gave way
  }
  api().set_memory_limit(0);
  api().empty_cache();
  EXPECT_EQ(api().memory_stats().reserved, start.reserved);
  expect_error<OutOfMemory>([] { Block b(size_t(1) << 45); }, "the GPU has no 35184372088832 bytes left in one piece");
  Block works(MiB);
}

TEST("cuda host: a graph runs again on the same addresses, its blocks are its own") {
  constexpr size_t n = 300;
  Block in(n * 4), out(n * 4);
  size_t current = api().memory_stats().current;
  api().upload(in.data, ramp(n, 0).data(), n * 4);
  api().begin_capture();
  std::vector<float> two(n, 2.0f);
  {
    Block between(n * 4);
    add(in.data, between.data, n, 1);
    add(between.data, out.data, n, 1);
    Block again(n * 4);
    api().upload(again.data, two.data(), n * 4);  // the same bytes in every run
    std::fill(two.begin(), two.end(), 0.0f);
    binary_kernel(Device::cuda, {Binary::mul, out.data, out.data, again.data,
                                 coalesce<3>({n}, {Shape{1}, Shape{1}, Shape{1}}), DType::f32});
  }
  expect_error<DeviceError>([&] { fetch(out.data, n); }, "while a graph is recorded");
  expect_error<DeviceError>([&] { api().begin_capture(); }, "another graph");
  void* graph = api().end_capture();
  const size_t with_graph = api().memory_stats().current;
  EXPECT(with_graph > current);
  Block other(n * 4);  // never memory of the graph
  const size_t of_other = api().memory_stats().current - with_graph;
  EXPECT(of_other >= size_t(n) * 4);
  api().upload(other.data, ramp(n, 7).data(), n * 4);
  for (float first : {0.0f, 10.0f, -3.0f}) {
    api().upload(in.data, ramp(n, first).data(), n * 4);
    api().launch_graph(graph);
    std::vector<float> want = ramp(n, first + 2);
    for (float& v : want) v *= 2;
    EXPECT(fetch(out.data, n) == want);
    EXPECT(fetch(other.data, n) == ramp(n, 7));
  }
  api().destroy_graph(graph);
  EXPECT_EQ(api().memory_stats().current, current + of_other);
}

TEST("cuda host: a recording that is given up leaves nothing") {
  constexpr size_t n = 100;
  Block x(n * 4);
  api().fill(x.data, 0, n * 4);
  size_t current = api().memory_stats().current;
  api().begin_capture();
  {
    Block y(n * 4);
    add(x.data, y.data, n, 1);
    add(y.data, x.data, n, 1);
  }
  api().cancel_capture();
  api().cancel_capture();
  EXPECT_EQ(api().memory_stats().current, current);
  EXPECT(fetch(x.data, n) == std::vector<float>(n, 0.0f));
  expect_error<DeviceError>([&] { api().end_capture(); }, "none is being recorded");
}

TEST("cuda host: the end of a graph hands its blocks to others") {
  if (std::getenv("DEEM_CUDA_EXACT_BLOCKS")) return;
  constexpr size_t n = 5000;
  Block x(n * 4);
  api().fill(x.data, 0, n * 4);
  api().begin_capture();
  auto y = std::make_unique<Block>(n * 4);
  add(x.data, y->data, n, 1);
  void* graph = api().end_capture();
  void* address = y->data;
  api().launch_graph(graph);
  EXPECT(fetch(y->data, n) == std::vector<float>(n, 1.0f));
  y.reset();  // the graph still writes there
  Block z(n * 4);
  EXPECT(z.data != address);
  api().launch_graph(graph);
  api().destroy_graph(graph);
  Block w(n * 4);
  EXPECT_EQ(w.data, address);
}

}  // namespace
}  // namespace deem::test
