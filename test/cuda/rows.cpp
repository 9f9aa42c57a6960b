// softmax, cross_entropy, rope.
#include <cmath>

#include "ops/loss.h"
#include "ops/rope.h"
#include "ops/softmax.h"
#include "parity.h"

namespace deem::test {
namespace {

const DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
// Sums in another order may differ in the last bit of f32, and then round to neighbours in bf16 or f16: one unit in the last place.
double tolerance(DType d, double f32 = 2e-6) { return d == DType::f32 ? f32 : d == DType::bf16 ? 0x1p-7 : 0x1p-10; }
double gradient_tolerance(DType d) { return tolerance(d, 1e-5); }

struct RowCase {
  int64_t rows, cols;
};
const RowCase kRows[] = {{1, 1},   {0, 8},   {5, 31},   {33, 32},  {3, 33},    {70, 64},
                         {2, 512}, {9, 520}, {3, 1100}, {2, 4104}, {1, 16392}, {2, 5001}};

TEST("softmax: cuda as cpu") {
  for (DType t : kTypes)
    for (RowCase c : kRows)
      for (bool log : {false, true}) {
        Parity p(str(log ? "log_softmax " : "softmax ", c.rows, " x ", c.cols, " ", t));
        auto x = p.random(c.rows * c.cols, t, 4, 1), y = p.output(c.rows * c.cols, t);
        p.run([&](Device d) {
          softmax_kernel(d, {.x = x(d), .y = y(d), .rows = c.rows, .cols = c.cols, .log = log, .dtype = t});
        });
        p.close(y, tolerance(t));

        Parity q(str(log ? "log_softmax " : "softmax ", "backward ", c.rows, " x ", c.cols, " ", t));
        auto dy = q.random(c.rows * c.cols, t), saved = q.random(c.rows * c.cols, t, 0.5, log ? -3 : 0.5),
             dx = q.output(c.rows * c.cols, t);
        q.run([&](Device d) {
          softmax_backward_kernel(
              d, {.dy = dy(d), .y = saved(d), .dx = dx(d), .rows = c.rows, .cols = c.cols, .log = log, .dtype = t});
        });
        q.close(dx, gradient_tolerance(t));
      }
}

TEST("softmax: infinite logits") {
  Parity p("-inf among logits");
  const float inf = INFINITY;
  auto x = p.of<float>({0, -inf, 1, 2, -inf, -inf, -inf, -inf, 5, NAN, 1, 1}), y = p.output(12);
  p.run([&](Device d) {
    softmax_kernel(d, {.x = x(d), .y = y(d), .rows = 3, .cols = 4, .log = false, .dtype = DType::f32});
  });
  p.close(y);
}

// 32006 classes: rows start at addresses that no pack starts at.
const RowCase kLosses[] = {{1, 1}, {0, 5}, {6, 3}, {5, 31}, {33, 33}, {4, 1024}, {3, 1025}, {7, 4100}, {2, 32006}};

TEST("cross_entropy: cuda as cpu") {
  for (DType t : kTypes)
    for (RowCase c : kLosses) {
      Parity p(str("cross_entropy ", c.rows, " x ", c.cols, " ", t));
      auto logits = p.random(c.rows * c.cols, t, 5), labels = p.integers(c.rows, DType::i64, 0, c.cols),
           lse = p.output(c.rows), loss = p.output(c.rows), dlogits = p.output(c.rows * c.cols, t),
           dy = p.of<float>({1.5f});
      if (c.rows > 2) labels.host<int64_t>()[1] = -100;
      p.run([&](Device d) {
        cross_entropy_kernel(d, {.logits = logits(d),
                                 .labels = labels(d),
                                 .lse = lse(d),
                                 .loss = loss(d),
                                 .rows = c.rows,
                                 .cols = c.cols,
                                 .ignore_index = -100,
                                 .dtype = t});
        cross_entropy_backward_kernel(d, {.logits = logits(d),
                                          .labels = labels(d),
                                          .lse = lse(d),
                                          .dlogits = dlogits(d),
                                          .dy = dy(d),
                                          .kept = c.rows - (c.rows > 2),
                                          .rows = c.rows,
                                          .cols = c.cols,
                                          .ignore_index = -100,
                                          .dtype = t});
      });
      p.close(lse, -1, "lse");
      p.close(loss, -1, "loss");
      p.close(dlogits, gradient_tolerance(t), "dlogits");
    }
}

TEST("cross_entropy: hidden classes") {
  Parity p("-inf among logits");
  const float inf = INFINITY;
  auto logits = p.of<float>({-inf, 2, 1, -inf, 0, -inf}), labels = p.of<int64_t>({1, 1});
  auto lse = p.output(2), loss = p.output(2);
  p.run([&](Device d) {
    cross_entropy_kernel(d, {.logits = logits(d),
                             .labels = labels(d),
                             .lse = lse(d),
                             .loss = loss(d),
                             .rows = 2,
                             .cols = 3,
                             .ignore_index = -1,
                             .dtype = DType::f32});
  });
  p.close(lse);
  p.close(loss);
}

TEST("rope: cuda as cpu") {
  struct Case {
    int64_t batches, tokens, heads, half;
    bool shared, strided;
  };
  for (DType t : kTypes)
    for (Case c : {Case{1, 1, 1, 1, true, false},
                   {2, 5, 3, 7, false, false},
                   {2, 3, 4, 16, true, false},
                   {1, 33, 2, 64, true, true},
                   {2, 2, 40, 64, false, true},
                   {0, 3, 2, 8, true, false}})
      for (float sign : {1.0f, -1.0f}) {
        Parity p(str("rope ", c.batches, " x ", c.tokens, " x ", c.heads, " x ", 2 * c.half, " ", t));
        const int64_t rows = (c.shared ? 1 : c.batches) * c.tokens, width = 2 * c.half;
        // Strided: x is the middle third of rows three times as wide, as of one product for queries, keys and values.
        const int64_t row = (c.strided ? 3 : 1) * c.heads * width, first = c.strided ? c.heads * width : 0;
        auto positions = p.integers(rows, DType::i64, -5, 100000), frequencies = p.random(c.half, DType::f32, 0.5, 0.5),
             table = p.output(rows * width), x = p.random(c.batches * c.tokens * row, t),
             y = p.output(c.batches * c.tokens * c.heads * width, t);
        p.run([&](Device d) {
          rope_table_kernel(d, {.positions = positions(d),
                                .frequencies = frequencies(d),
                                .table = table(d),
                                .rows = rows,
                                .half = c.half});
          rope_kernel(d, {.x = x(d, c.batches ? first : 0),
                          .batch = c.tokens * row,
                          .row = row,
                          .head = width,
                          .table = table(d),
                          .table_batch = c.shared ? 0 : c.tokens * width,
                          .y = y(d),
                          .batches = c.batches,
                          .tokens = c.tokens,
                          .heads = c.heads,
                          .half = c.half,
                          .sign = sign,
                          .dtype = t});
        });
        p.close(table, -1, "table");
        p.close(y, tolerance(t), "y");
      }
}

}  // namespace
}  // namespace deem::test
