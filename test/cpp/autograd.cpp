#include "core/autograd.h"

#include <cstring>
#include <thread>

#include "core/engine.h"
#include "core/memory.h"
#include "core/rng.h"
#include "ops.h"
#include "test.h"

namespace deem::test {

namespace {

Tensor leaf(std::vector<float> values) {
  Tensor t = Tensor::from<float>({int64_t(values.size())}, values);
  t.set_requires_grad(true);
  return t;
}

float grad_of(const Tensor& t, int64_t i = 0) {
  EXPECT(t.grad().defined());
  return t.grad().data<float>()[i];
}

Tensor times(const Tensor& x, float factor) {
  Tensor y = Tensor::empty(x.shape());
  for (int64_t i = 0; i < x.numel(); i++) y.data<float>()[i] = x.data<float>()[i] * factor;
  return y;
}

// y = factor * x; the closure keeps x, as most operations do.
Tensor scale(const Tensor& x, float factor) {
  return record("scale", times(x, factor), {x},
                [x, factor](const Tensor& dy, Needs) -> Tensors { return {times(dy, factor)}; });
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.nbytes()) == 0;
}

}  // namespace

TEST("autograd: gradients add up over uses, calls and shared inputs") {
  Tensor x = leaf({2});
  Tensor y = record("twice", times(x, 2), {x, x}, [](const Tensor& dy, Needs) -> Tensors { return {dy, dy}; });
  backward({y});
  EXPECT_EQ(grad_of(x), 2.f);
  Tensor a = scale(x, 3), b = scale(a, 5), c = scale(a, 7);
  backward({b, c});  // 15 + 21
  EXPECT_EQ(grad_of(x), 38.f);
  x.clear_grad();
  EXPECT(!x.grad().defined());
}

TEST("autograd: a leaf's gradient is its own memory") {
  Tensor x = leaf({1, 2}), z = leaf({3, 4});
  Tensor seed = Tensor::full({2}, 1);
  Tensor both = record("pass", times(x, 1), {x, z}, [](const Tensor& dy, Needs) -> Tensors { return {dy, dy}; });
  backward({both}, {seed});
  x.grad().data<float>()[0] = 100;
  EXPECT_EQ(grad_of(z), 1.f);
  EXPECT_EQ(seed.data<float>()[0], 1.f);
  Tensor held = x.grad();  // someone looks at the gradient while more comes in
  backward({scale(x, 2)}, {seed});
  EXPECT_EQ(grad_of(x, 1), 3.f);
}

TEST("autograd: only what is needed is asked for, and a missing gradient is an error") {
  Tensor x = leaf({1}), frozen = Tensor::full({1}, 1);
  Tensor y = record("op", times(x, 1), {frozen, x, Tensor()}, [](const Tensor& dy, Needs needs) -> Tensors {
    EXPECT(!needs[0] && needs[1] && !needs[2]);
    return {Tensor(), dy, Tensor()};
  });
  backward({y});
  EXPECT_EQ(grad_of(x), 1.f);
  EXPECT(!frozen.grad().defined());
  auto broken = [&](Tensors grads) {
    return [&x, grads] {
      backward({record("broken", times(x, 1), {x}, [grads](const Tensor&, Needs) { return grads; })});
    };
  };
  expect_error<NoGradient>(broken({Tensor()}), "[broken] has no gradient for input 0");
  expect_error<ValueError>(broken({}), "returned 0 gradients for 1 inputs");
  expect_error<ShapeError>(broken({Tensor::zeros({2})}), "reached a leaf");
  expect_error<NoGradient>([&] { no_gradient("argmax", times(x, 1), {x}); }, "[argmax] has no gradient");
  no_gradient("argmax", times(x, 1), {x.detach()});
}

TEST("autograd: nothing is recorded where nothing is wanted") {
  Tensor x = leaf({1});
  {
    GradMode off(false);
    EXPECT(!scale(x, 2).tracked());
    {
      GradMode on(true);
      EXPECT(scale(x, 2).tracked());
    }
    EXPECT(!grad_enabled());
  }
  EXPECT(grad_enabled() && scale(x, 2).tracked());
  EXPECT(!scale(x.detach(), 2).tracked());
  expect_error<ValueError>([&] { scale(x, 2).set_requires_grad(true); }, "leaves only");
}

TEST("autograd: bad calls of backward") {
  Tensor x = leaf({1, 2});
  Tensor y = scale(x, 2);
  expect_error<NoGradient>([&] { backward({Tensor::zeros({1})}); }, "does not depend");
  expect_error<ShapeError>([&] { backward({y}); }, "a gradient must be given");
  expect_error<ShapeError>([&] { backward({y}, {Tensor::zeros({3})}); }, "gradient of shape [3]");
  expect_error<DTypeError>([&] { backward({y}, {Tensor::zeros({2}, DType::bf16)}); }, "gradient is bf16");
  expect_error<ValueError>([&] { backward({y}, {Tensor::zeros({2}), Tensor()}); }, "2 gradients");
  backward({y}, {Tensor::full({2}, 1)});  // still whole after all those
  EXPECT_EQ(grad_of(x), 2.f);
}

TEST("autograd: the graph is gone after one backward pass") {
  Tensor x = leaf({1});
  Tensor y = scale(x, 2), z = scale(y, 3);
  backward({z});
  expect_error<ValueError>([&] { backward({z}); }, "the graph of scale was already used");
  expect_error<ValueError>([&] { backward({scale(y, 1)}); }, "the graph of scale was already used");
  EXPECT_EQ(grad_of(x), 6.f);
}

TEST("autograd: graphs of 100,000 operations, dropped and used, do not overflow the stack") {
  size_t before = memory_stats().current;
  {
    Tensor x = leaf({1});
    Tensor y = x;
    for (int i = 0; i < 100000; i++) y = scale(y, 1);
    y = Tensor();
    for (int i = 0; i < 100000; i++) y = scale(y ? y : x, i % 2 ? 2.f : 0.5f);
    backward({y});
    EXPECT_EQ(grad_of(x), 1.f);
  }
  EXPECT_EQ(memory_stats().current, before);
}

TEST("autograd: a ladder of 20,000 shared operations is freed") {
  size_t before = memory_stats().current;
  {
    Tensor a = leaf({1}), b = leaf({1});
    Tensor p = a, q = b;
    for (int i = 0; i < 20000; i++) {
      Tensor next = record("both", times(p, 1), {p, q}, [p, q](const Tensor& dy, Needs) -> Tensors {
        return {dy, dy};
      });
      q = p;
      p = next;
    }
  }
  EXPECT_EQ(memory_stats().current, before);
}

TEST("autograd: saved tensors are freed as the backward pass goes") {
  constexpr int64_t kBytes = 1 << 20;
  Tensor x = leaf(std::vector<float>(kBytes / 4, 1.f));
  Tensor y = x;
  for (int i = 0; i < 32; i++) y = scale(y, 1);
  size_t with_graph = memory_stats().current;
  Tensor seed = Tensor::full(y.shape(), 1);
  y = record("end", Tensor::scalar(0), {y}, [seed](const Tensor&, Needs) -> Tensors { return {seed}; });
  reset_peak_memory();
  backward({y});
  EXPECT(memory_stats().peak <= with_graph + 5 * kBytes);
  EXPECT(memory_stats().current <= with_graph - 28 * kBytes);
}

TEST("autograd: a failing backward function leaves nothing behind") {
  size_t before = memory_stats().current;
  {
    Tensor x = leaf({1});
    Tensor y = record("fails", times(x, 1), {scale(x, 2)},
                      [](const Tensor&, Needs) -> Tensors { throw ValueError("on purpose"); });
    expect_error<ValueError>([&] { backward({scale(y, 2)}); }, "on purpose");
    EXPECT(grad_enabled());
    backward({scale(x, 4)});
    EXPECT_EQ(grad_of(x), 4.f);
  }
  EXPECT_EQ(memory_stats().current, before);
}

TEST("checkpoint: same bits as without, parameters and random draws included") {
  Tensor w = leaf({0.7f, -1.3f, 2.1f});
  auto block = [w](const Tensors& in) {
    const Tensor& x = in[0];
    Tensor y = Tensor::empty(x.shape()), mask = Tensor::empty(x.shape());
    uint64_t stream = take_stream();
    for (int64_t i = 0; i < x.numel(); i++) {
      mask.data<float>()[i] = uniform01(philox(rng_state().seed, stream, uint64_t(i))[0]) + 0.1f;
      y.data<float>()[i] = x.data<float>()[i] * w.data<float>()[i] * mask.data<float>()[i];
    }
    return record("block", y, {x, w}, [x, w, mask](const Tensor& dy, Needs) -> Tensors {
      Tensor dx = Tensor::empty(x.shape()), dw = Tensor::empty(x.shape());
      for (int64_t i = 0; i < x.numel(); i++) {
        dx.data<float>()[i] = dy.data<float>()[i] * w.data<float>()[i] * mask.data<float>()[i];
        dw.data<float>()[i] = dy.data<float>()[i] * x.data<float>()[i] * mask.data<float>()[i];
      }
      return {dx, dw};
    });
  };
  auto run = [&](bool checkpointed, const Tensor& x) {
    RngScope draws(5, 1);
    Tensor y = x;
    for (int i = 0; i < 3; i++) y = checkpointed ? checkpoint(block, {y}, true) : block({y});
    uint64_t streams = rng_state().next_stream;
    backward({y}, {Tensor::full({3}, 1)});
    EXPECT_EQ(rng_state().next_stream, streams);
    return y.detach();
  };
  Tensor x1 = leaf({1, 2, 3}), x2 = leaf({1, 2, 3});
  Tensor y1 = run(false, x1);
  Tensor w1 = w.grad().clone();
  w.clear_grad();
  Tensor y2 = run(true, x2);
  EXPECT(same_bits(y1, y2) && same_bits(x1.grad(), x2.grad()) && same_bits(w1, w.grad()));
  w.clear_grad();
  Tensor frozen = Tensor::full({3}, 1);  // only the captured parameter trains
  run(true, frozen);
  EXPECT(w.grad().defined() && !frozen.grad().defined());
}

TEST("checkpoint: a block that returns its input, and one that uses none of its inputs") {
  Tensor x = leaf({1, 2}), unused = leaf({5});
  Tensor y = checkpoint([](const Tensors& in) { return in[0]; }, {x, unused}, false);
  backward({y}, {Tensor::full({2}, 3)});
  EXPECT_EQ(grad_of(x, 1), 3.f);
  EXPECT_EQ(grad_of(unused), 0.f);
}

TEST("checkpoint: without gradients it only calls the function") {
  int calls = 0;
  auto block = [&](const Tensors& in) {
    calls++;
    return scale(in[0], 2);
  };
  Tensor plain = Tensor::full({1}, 1);
  EXPECT(!checkpoint(block, {plain}, false).tracked());
  EXPECT_EQ(calls, 1);
  Tensor x = leaf({1});
  backward({checkpoint(block, {x}, false)});
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(grad_of(x), 2.f);
}

TEST("autograd: cancellation stops forward and backward") {
  Tensor x = leaf({1});
  auto flag = std::make_shared<CancelFlag>();
  std::string said;
  auto attempt = [&](auto work) {
    said.clear();
    Engine::get().post(
        [&] {
          try {
            work();
          } catch (const Aborted& e) {
            said = e.what();
          }
        },
        flag);
    Engine::get().run_sync([] {});
    flag->raised = false;
  };
  int steps = 0;
  attempt([&] {
    Tensor y = x;
    for (;; steps++) {
      if (steps == 10) flag->raised = true;
      y = scale(y, 1);
    }
  });
  EXPECT_EQ(said, std::string("the task was aborted"));
  EXPECT_EQ(steps, 10);
  Tensor y = record("raises", times(x, 1), {scale(x, 1)}, [&](const Tensor& dy, Needs) -> Tensors {
    flag->raised = true;
    return {dy};
  });
  attempt([&] { backward({y}); });
  EXPECT_EQ(said, std::string("the task was aborted"));
  EXPECT(!x.grad().defined());
}

}  // namespace deem::test
